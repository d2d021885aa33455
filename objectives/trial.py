"""One trial: calibrate, quantize, score.

Responsible for the straight path from a setting to a measured value, and for turning expected failures into values.
May assume that the bench was laid out for it: one model, its text, its calibration.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from objectives.calibration.calibration import Calibration
from objectives.model.folding import changed_modules
from objectives.model.loading import Model, weights_restored
from objectives.model.memory import is_out_of_memory, peak_bytes, reset_peak
from objectives.model.roles import Block
from objectives.progress import Progress, silent
from objectives.quantization import Keep, LayerResult, ModelSize, model_size, quantize_model, require_suitable
from objectives.scoring import FIRST_LOOK, Score, score
from objectives.text.sequences import Sequences
from quant.methods import Setting
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
    """

    model: Model
    blocks: list[Block]
    calibration: Calibration
    allow_partial_groups: bool = False


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What a trial measured.

    Attributes:
        setting: What was tried; None is the model in full precision.
        outcome: How it ended; every field below is what was measured until then.
        score: Per-sequence values by data set; None where none was finite.
        size: Bits per weight and bytes.
        layers: The search's choice per Linear.
        seconds: Per phase: calibrate, quantize, score.
        peak_bytes: Highest memory in use on the device.
    """

    setting: Setting | None
    outcome: Outcome
    score: Score | None
    size: ModelSize
    layers: list[LayerResult]
    seconds: Mapping[str, float]
    peak_bytes: int


def always(_: Score) -> bool:
    """Go on after every look."""
    return True


def run_trial(
    bench: Bench,
    setting: Setting | None,
    sequences: Sequences,
    go_on: Callable[[Score], bool] = always,
    progress: Progress = silent,
    first_look: int = FIRST_LOOK,
) -> TrialResult:
    """Quantize the model by one setting, score it, and put its weights back.

    Args:
        bench: Model, roles and calibration.
        setting: What to try; None scores the model as it is.
        sequences: What to score it on.
        go_on: Asked after every look but the last whether the trial is worth its next sequences.
        progress: Told how far each phase is.
        first_look: After how many sequences `go_on` is asked first.

    Raises:
        InputError: If the setting does not suit the model or the text.
        QuantizationError: If a weight is not finite.
    """
    reset_peak(bench.model.device)
    seconds: dict[str, float] = {}
    layers: list[LayerResult] = []
    measured: Score | None = None
    try:
        with quantized(bench, setting, layers, seconds, progress), timed(seconds, "score"):
            outcome: Outcome = "complete"
            for look in score(bench.model.module, sequences, first_look=first_look):
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
    return TrialResult(
        setting=setting,
        outcome=outcome,
        score=measured,
        size=model_size(bench.model, bench.blocks, setting),
        layers=layers,
        seconds=seconds,
        peak_bytes=peak_bytes(bench.model.device),
    )


@contextmanager
def quantized(
    bench: Bench,
    setting: Setting | None,
    layers: list[LayerResult],
    seconds: dict[str, float],
    progress: Progress = silent,
    keep: Keep | None = None,
) -> Iterator[None]:
    """The model quantized by `setting` inside the block, and as it was after it.

    `layers` and `seconds` are filled on the way, and `keep` is told the codes. A damaged cache entry is computed again.

    Raises:
        DamagedEntryError: If an entry is damaged once more after it was computed again.
    """
    if setting is None:
        yield
        return
    require_suitable(bench.blocks, setting, bench.allow_partial_groups)
    modules = [module for block in bench.blocks for module in changed_modules(block)]
    repaired: set[str] = set()
    while True:
        with timed(seconds, "calibrate"):
            bench.calibration.ensure([setting.n_calib], progress)
        with weights_restored(modules):
            try:
                with timed(seconds, "quantize"):
                    stored = bench.model.stored_dtype
                    layers[:] = quantize_model(bench.blocks, bench.calibration, setting, stored, progress, keep)
            except DamagedEntryError as damage:
                if damage.key in repaired:
                    raise
                repaired.add(damage.key)
                bench.calibration.discard(damage)
                continue
            yield
            return


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the wall-clock seconds of the block to `seconds[phase]`."""
    started = perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + perf_counter() - started
