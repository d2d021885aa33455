"""One trial: calibrate, quantize, score.

Responsible for the straight path from a setting to a measured value, and for turning expected failures into values.
May assume that the bench was laid out for it: one model, its text, its calibration.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor, nn

from objectives.calibration.calibration import Calibration
from objectives.kept_blocks import KeptBlocks
from objectives.model.folding import changed_modules
from objectives.model.loading import Model
from objectives.model.memory import is_out_of_memory, peak_bytes, reset_peak
from objectives.model.roles import Block
from objectives.plan_keys import plan_parts
from objectives.progress import Progress, silent
from objectives.quantization import model_size, quantize_model
from objectives.quantized_blocks import FoldedScales, LayerResult
from objectives.refined import Refined, owners
from objectives.scoring import FIRST_LOOK, Score, score
from objectives.stopwatch import Stopwatch
from objectives.suitability import require_suitable
from objectives.teacher import Original, Teacher, cached_teacher
from objectives.text.sequences import Sequences
from quant.plan import Plan
from quant.scheme import IntWeight
from quant.setting import Setting
from quant.sizes import ModelSize
from storage.errors import DamagedEntryError

log = logging.getLogger(__name__)

Outcome = Literal["complete", "stopped", "non-finite", "out-of-memory"]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every trial of a study shares.

    Attributes:
        model: With its original weights, before and after each trial.
        blocks: Its layer roles.
        calibration: Statistics of the calibration text.
        allow_partial_groups: Accept group sizes that leave a partial last group.
        refined: What refining made of one plan, which is quantized so wherever it is; None where none was refined.
        original: Of a ready-made model, what it was made of; None of a model that is its own full precision.
    """

    model: Model
    blocks: list[Block]
    calibration: Calibration
    allow_partial_groups: bool = False
    refined: Refined | None = None
    original: Original | None = None

    def refinement_of(self, plan: Plan | None) -> Refined | None:
        """Return what refining made of a plan; None where it was not refined."""
        return self.refined if self.refined is not None and self.refined.plan == plan else None

    def teacher(self, sequences: Sequences, progress: Progress = silent) -> Teacher | None:
        """Return full precision on the sequences, computed once for all processes; asked while weights are original.

        None where there is none: of a model that was quantized before, or has other tokens than its original.

        Raises:
            StorageError: If the cache cannot be written, or has no room.
        """
        if self.original is not None:
            return self.original.teacher(self.model, sequences)
        if self.model.quantized is not None:
            return None
        return cached_teacher(self.model, sequences, self.calibration.cache, progress)


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What quantizing a model gave, beside the weights that are now in it.

    Attributes:
        layers: The choice for each Linear, in the model's order; none of a model that is as it was.
        codes: What the weights are stored as, on the CPU, by the name of the Linear; only those that were asked for.
        folded: What was folded into those of which there are codes.
        unfolded_vectors: Norm weights and biases that refining changed, as they are in a model whose scales were not
            folded, by name of the parameter.
        seconds: Per phase: calibrate, quantize.
        fingerprint: Of everything that was changed; None of a model that is as it was.
        originals: What was in the parameters that were changed.
    """

    layers: tuple[LayerResult, ...] = ()
    codes: Mapping[str, IntWeight] = field(default_factory=dict)
    folded: Mapping[str, FoldedScales] = field(default_factory=dict)
    unfolded_vectors: Mapping[str, Tensor] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    fingerprint: str | None = None
    originals: Mapping[nn.Parameter, Tensor] = field(default_factory=dict)


class QuantizingOutOfMemoryError(MemoryError):
    """Memory ran out before a model was quantized; `seconds` are those of the phases until then."""

    def __init__(self, message: str, seconds: Mapping[str, float]) -> None:
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What a trial measured.

    Attributes:
        plan: What was tried; None is the model in full precision.
        outcome: How it ended; every field below is what was measured until then.
        score: Per-sequence values by data set; None where none was finite.
        size: Bits per weight and bytes.
        layers: The choice for each Linear.
        seconds: Per phase: calibrate, quantize, score.
        peak_bytes: Highest memory in use on the device.
        fingerprint: Of the quantized weights: equal ones compute the same; None for full precision, and in results
            that were stored before it was taken.
    """

    plan: Plan | None
    outcome: Outcome
    score: Score | None
    size: ModelSize
    layers: tuple[LayerResult, ...]
    seconds: Mapping[str, float]
    peak_bytes: int
    fingerprint: str | None = None

    @property
    def setting(self) -> Setting | None:
        """Return the setting of all Linears; None for full precision, and where they had different ones."""
        return None if self.plan is None else self.plan.only


def always(_: Score) -> bool:
    """Go on after every look."""
    return True


def no_twin(_: str) -> Score | None:
    """Know of no equal weights."""
    return None


def run_trial(
    bench: Bench,
    plan: Plan | None,
    sequences: Sequences,
    go_on: Callable[[Score], bool] = always,
    progress: Progress = silent,
    first_look: int = FIRST_LOOK,
    twin: Callable[[str], Score | None] = no_twin,
) -> TrialResult:
    """Quantize the model by a plan, score it, and put its weights back.

    Args:
        bench: Model, roles and calibration.
        plan: What to try; None scores the model as it is.
        sequences: What to score it on.
        go_on: Asked after every look but the last whether the trial is worth its next sequences.
        progress: Told how far each phase is.
        first_look: After how many sequences `go_on` is asked first.
        twin: Asked for the score on all sequences of weights with this fingerprint; where there is one the model need
            not run, and everything else is as if it had.

    Raises:
        InputError: If the plan does not suit the model or the text.
        QuantizationError: If a weight is not finite.
    """
    reset_peak(bench.model.device)
    watch = Stopwatch()
    model = Quantized()
    measured: Score | None = None
    try:
        if plan is not None:
            # `quantized` asks again, but after full precision took its time.
            require_suitable(bench.blocks, plan, bench.allow_partial_groups)
        teacher = bench.teacher(sequences, progress)
        with quantized(bench, plan, progress) as model, watch.phase("score"):
            outcome: Outcome = "complete"
            stored = twin(model.fingerprint) if model.fingerprint is not None else None
            looks = (
                score(bench.model.module, sequences, first_look=first_look, teacher=teacher)
                if stored is None
                else stored.looks(first_look)
            )
            for look in looks:
                if not look.nll.isfinite().all():
                    outcome = "non-finite"
                    break
                measured = look
                progress(f"scoring on {sequences.source}", len(look.nll), len(sequences))
                if len(look.nll) < len(sequences) and not go_on(look):
                    outcome = "stopped"
                    break
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        log.warning("out of memory: %s", error)
        outcome = "out-of-memory"
        if isinstance(error, QuantizingOutOfMemoryError):
            model = Quantized(seconds=error.seconds)
    return TrialResult(
        plan=plan,
        outcome=outcome,
        score=measured,
        size=model_size(bench.model, bench.blocks, plan),
        layers=model.layers,
        seconds={**model.seconds, **watch.seconds},
        peak_bytes=peak_bytes(bench.model.device),
        fingerprint=model.fingerprint,
    )


def replayed(result: TrialResult, go_on: Callable[[Score], bool], first_look: int = FIRST_LOOK) -> TrialResult:
    """End a trial by a stored result, given up where it would have been: equal studies get equal trials."""
    assert result.score is not None
    for look in result.score.looks(first_look):
        if len(look.nll) < len(result.score.nll) and not go_on(look):
            return replace(result, outcome="stopped", score=look)
    return result


@contextmanager
def quantized(
    bench: Bench, plan: Plan | None, progress: Progress = silent, with_codes: bool = False
) -> Iterator[Quantized]:
    """Quantize the model by `plan` inside the block, and restore it after it; None changes nothing.

    A damaged cache entry is computed again, and blocks that a process had quantized before it died are read
    (`KeptBlocks`). `with_codes` asks for the codes.

    Raises:
        InputError: If the plan does not suit the model or the text.
        QuantizationError: If a weight is not finite.
        QuantizingOutOfMemoryError: If there is not enough memory.
        DamagedEntryError: If an entry is damaged once more after it was computed again.
    """
    if plan is None:
        yield Quantized()
        return
    require_suitable(bench.blocks, plan, bench.allow_partial_groups)
    modules = [module for block in bench.blocks for module in changed_modules(block)]
    refined = bench.refinement_of(plan)
    if refined is not None:
        modules += owners(bench.model.module, list(refined.vectors))
    watch = Stopwatch()
    repaired: set[str] = set()
    parts = plan_parts(bench.model, bench.blocks, bench.calibration, plan, bench.allow_partial_groups)
    with_codes = with_codes or refined is not None
    with KeptBlocks(bench.model, bench.blocks, bench.calibration.cache, parts, with_codes) as kept:
        while True:
            with _within_memory(watch, "calibrate"):
                bench.calibration.ensure(plan.calibration_sizes, progress)
            with bench.model.weights.restored(modules) as originals:
                try:
                    with _within_memory(watch, "quantize"):
                        made = _quantize(bench, plan, progress, kept, with_codes)
                except DamagedEntryError as damage:
                    bench.calibration.discard_once(damage, repaired)
                    continue
                fingerprint = bench.model.weights.fingerprint(modules)
                yield replace(made, seconds=watch.seconds, fingerprint=fingerprint, originals=originals)
                return


def _quantize(bench: Bench, plan: Plan, progress: Progress, kept: KeptBlocks, with_codes: bool) -> Quantized:
    model, refined = bench.model, bench.refinement_of(plan)
    made = quantize_model(model, bench.blocks, bench.calibration, plan, progress, kept, with_codes)
    if refined is None:
        return Quantized(layers=made.layers, codes=made.codes, folded=made.folded)
    return Quantized(
        layers=made.layers,
        codes=refined.put_into(model, bench.blocks, made.codes),
        folded=made.folded,
        unfolded_vectors=refined.unfolded(bench.blocks, made.folded),
    )


@contextmanager
def _within_memory(watch: Stopwatch, phase: str) -> Iterator[None]:
    """Time a phase; where memory runs out, the error says how long everything took until then."""
    try:
        with watch.phase(phase):
            yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise QuantizingOutOfMemoryError(str(error), watch.seconds) from error
