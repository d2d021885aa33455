"""Evaluate a model on one or more data sets, as it is and under settings.

Responsible for preparing what several measurements share - model, text, calibration, the number type - and for
laying out the results as rows. Each setting is quantized once and scored on every data set. May assume that the
plans were validated when they were made.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from objectives.beginning import beginning_note
from objectives.calibration.calibration import Calibration
from objectives.limits import length_note, require_length, require_readable
from objectives.model.finding import find_blocks
from objectives.model.loading import ModelPlan, load_model
from objectives.model.roles import kept_in_16_bit, quantized_part, unscaled_inputs
from objectives.paired import Difference, distance, paired_difference
from objectives.plan_files import LinearsSetting, linears_settings
from objectives.precision import Agreement, check_agreement
from objectives.progress import Progress, silent
from objectives.quantization import model_size, stored_bytes
from objectives.rounding_notes import rounding_notes
from objectives.scoring import Score, score_all
from objectives.suitability import require_experts, require_suitable
from objectives.text.sequences import Sequences, TextPlan, prepare_text
from objectives.trial import Bench, quantized
from quant.plan import Plan
from quant.setting import Setting
from storage.cache import TensorCache
from storage.paths import Paths
from storage.results import ResultStore

log = logging.getLogger(__name__)

FULL_PRECISION = "full precision"


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """What to lay out.

    Attributes:
        model: Which model.
        calibration: Which text its statistics come from.
        data: What it is scored on.
        seed: Of the split and the order of the text.
        max_memory: Bytes that calibration sums may take; None for half of what is available.
        route_all: Whether statistics of experts are of all tokens.
        allow_partial: Accept block weights that cannot be quantized.
        allow_partial_groups: Accept group sizes that leave a partial last group.
    """

    model: ModelPlan
    calibration: TextPlan
    data: tuple[TextPlan, ...]
    seed: int = 0
    max_memory: int | None = None
    route_all: bool = False
    allow_partial: bool = False
    allow_partial_groups: bool = False


@dataclass(frozen=True, kw_only=True)
class LaidOut:
    """A bench with its text.

    Attributes:
        bench: Model, roles and calibration.
        data: What is scored.
        agreement: Why its number type is trusted; None if it is float32.
        beginning: What the choice of how a sequence begins costs, where that is much.
    """

    bench: Bench
    data: list[Sequences]
    agreement: Agreement | None
    beginning: str | None = None

    @property
    def notes(self) -> list[str]:
        """Say what a person should know: how far the numbers' type is trusted, and what is not quantized or scaled."""
        model, blocks = self.bench.model, self.bench.blocks
        as_it_is = None if model.quantized is None else f"{model.name} is {model.quantized} and is measured as it is"
        too_long = length_note(model.module, [self.bench.calibration.text, *self.data])
        left_out = (quantized_part(model.module, blocks), kept_in_16_bit(blocks), unscaled_inputs(blocks))
        notes = (*model.notes, as_it_is, too_long, self.beginning, self.agreement, *left_out)
        return [str(note) for note in notes if note is not None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement: one data set under one setting.

    Attributes:
        dataset: The data set's name.
        plan: What was applied; None is full precision.
        score: Per-sequence values.
        difference: Mean NLL above full precision's on the same text; None for full precision itself.
        kl: Mean divergence from full precision in nats per token; None for what is not compared with it.
        flips: Share of targets before which full precision holds another token most likely; None where `kl` is.
        bits_per_weight: Over the decoder blocks' weights; None where nothing says.
        model_bytes: Of the whole model.
        quantize_seconds: Spent on quantizing (shared by the setting's data sets).
        score_seconds: Spent on scoring.
        as_it_is: What the model is called without a setting.
        notes: What a person should know of the codes.
    """

    dataset: str
    plan: Plan | None
    score: Score
    difference: Difference | None
    kl: Difference | None
    flips: Difference | None
    bits_per_weight: float | None
    model_bytes: int
    quantize_seconds: float
    score_seconds: float
    as_it_is: str = FULL_PRECISION
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """Return what the row is called."""
        return self.plan.label() if self.plan else self.as_it_is

    @property
    def setting(self) -> Setting | None:
        """Return the setting of all Linears; None for full precision, and where they have different ones."""
        return None if self.plan is None else self.plan.only

    @property
    def plan_settings(self) -> tuple[LinearsSetting, ...] | None:
        """Return the settings with their Linears where there are several; None elsewhere."""
        if self.plan is None or self.plan.is_uniform:
            return None
        return linears_settings(self.plan, tuple(self.plan.named))


def load_bench(plan: BenchPlan, paths: Paths, progress: Progress = silent) -> tuple[Bench, list[Sequences]]:
    """Load the model, find its roles and read all the text of the plan; nothing is measured yet.

    Raises:
        InputError: If the model or the text cannot be used.
    """
    offload = Path(plan.model.offload or paths.offload)
    model = load_model(plan.model, progress, offload)
    require_length(model.module, [plan.calibration, *plan.data])
    sources = ", ".join(dict.fromkeys(text.source for text in (plan.calibration, *plan.data)))
    progress(f"reading and tokenizing {sources}", 0, 1)
    calibration, *data = texts = prepare_text([plan.calibration, *plan.data], model.tokenizer, plan.seed)
    require_readable(model.module, texts, model.tokenizer)
    progress(f"asking the blocks of {model.name} what they compute", 0, 1)
    # Of a model that is already quantized nothing is asked but its scores.
    blocks = [] if model.quantized is not None else find_blocks(model.module, plan.allow_partial, model.weights)
    if plan.route_all:
        require_experts(model.name, blocks)
    cache = TensorCache(paths)
    bench = Bench(
        model=model,
        blocks=blocks,
        calibration=Calibration(model, blocks, calibration, cache, plan.max_memory, plan.route_all),
        allow_partial_groups=plan.allow_partial_groups,
    )
    return bench, data


def lay_out(plan: BenchPlan, paths: Paths, progress: Progress) -> LaidOut:
    """Load the bench and settle the number type.

    With `dtype` `auto`, a 16-bit type that does not agree with float32 is given up for float32.

    Raises:
        InputError: If the model or the text cannot be used.
    """
    bench, data = load_bench(plan, paths, progress)
    store = ResultStore(paths.results)
    note = beginning_note(bench.model, data[0], store, progress)
    if bench.model.quantized is not None:
        return LaidOut(bench=bench, data=data, agreement=None, beginning=note)
    agreement = check_agreement(bench.model, bench.blocks, data[0], store, progress)
    if agreement is not None and not agreement.good:
        log.warning("%s", agreement)
        if plan.model.dtype == "auto":
            return lay_out(replace(plan, model=replace(plan.model, dtype="float32")), paths, progress)
    if note is not None:
        log.warning("%s", note)
    return LaidOut(bench=bench, data=data, agreement=agreement, beginning=note)


def evaluate(laid_out: LaidOut, plans: Sequence[Plan], progress: Progress) -> Iterator[Row]:
    """Yield the rows of full precision and of every plan, data set by data set, as they are measured.

    Raises:
        InputError: If a plan does not suit the model or the text, before anything is measured.
        QuantizationError: If a weight is not finite.
    """
    for plan in plans:
        require_suitable(laid_out.bench.blocks, plan, laid_out.bench.allow_partial_groups)
        laid_out.bench.calibration.first(plan.n_calib)
    reference = list(_rows(laid_out, None, [], progress))
    yield from reference
    for plan in plans:
        yield from _rows(laid_out, plan, reference, progress)


def _rows(laid_out: LaidOut, plan: Plan | None, reference: Sequence[Row], progress: Progress) -> Iterator[Row]:
    bench = laid_out.bench
    size, already = model_size(bench.model, bench.blocks, plan), bench.model.quantized
    teachers = [bench.teacher(sequences, progress) for sequences in laid_out.data]
    with quantized(bench, plan, progress) as model:
        for index, (sequences, teacher) in enumerate(zip(laid_out.data, teachers, strict=True)):
            started = perf_counter()
            phase = f"scoring on {sequences.source}"
            measured = score_all(bench.model.module, sequences, phase, progress, teacher)
            score_seconds = perf_counter() - started
            full = reference[index].score if reference else None
            yield Row(
                dataset=sequences.source,
                plan=plan,
                score=measured,
                difference=paired_difference(measured, full) if full else None,
                kl=distance(measured, "kl") if full else None,
                flips=distance(measured, "flips") if full else None,
                bits_per_weight=size.bits_per_weight if already is None else already.bits,
                model_bytes=size.model_bytes if already is None else stored_bytes(bench.model),
                quantize_seconds=model.seconds.get("quantize", 0.0),
                score_seconds=score_seconds,
                notes=tuple(rounding_notes(model.layers)),
                as_it_is=FULL_PRECISION if already is None else already.method,
            )
