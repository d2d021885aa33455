"""Refine what is to be written, and measure what that gained on text that had no part in it.

Responsible for which text refining reads and which it is judged on. May assume a bench that was laid out with that
text (`with_refining_text`).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpo.deploy.refinement_trials import Stage, refine_best
from hpo.study.options import RefineOptions
from hpo.workers.measuring import measure_plan
from objectives.errors import InputError
from objectives.evaluation import BenchPlan
from objectives.model.loading import BUNDLED
from objectives.progress import Progress
from objectives.refinement.codes import require_movable
from objectives.refinement.gains import gain
from objectives.refinement.options import RefinementOptions, RefinementText
from objectives.refinement.refine import forgotten_where_codes_differ
from objectives.refinement.tuned import require_tunable
from objectives.refinement_record import PARTS, Gain
from objectives.text.sequences import Sequences, TextPlan
from objectives.trial import Bench
from quant.parameters import flag_of
from quant.plan import Plan
from storage.results import ResultStore

log = logging.getLogger(__name__)

BUNDLED_TEXT = "bundled:training"
HELD_BACK = 0.1
FEWEST_HELD_BACK, MOST_HELD_BACK = 4, 32
FEWEST = 16
MOST_TRIALS = 100


@dataclass(frozen=True, kw_only=True)
class Refining:
    """How to refine, and on what.

    Attributes:
        source: Of the text; None for the calibration text's.
        samples: Sequences to learn from.
        trials: How many refinements are tried.
        options: The rest.
    """

    source: str | None
    samples: int
    trials: int
    options: RefinementOptions


def make_refining(given: RefineOptions, seed: int) -> Refining | None:
    """Plan what was asked for; None where nothing is to be refined.

    Raises:
        InputError: If a value cannot be, or is given although nothing is to be refined.
    """
    if not given.refine:
        usual = RefineOptions()
        stray = [name for name, value in vars(given).items() if value != getattr(usual, name)]
        if stray:
            raise InputError(f"{', '.join(map(flag_of, stray))} given without --refine; add it, or leave them out")
        return None
    if given.refine_samples < 1:
        raise InputError(f"--refine-samples {given.refine_samples} is less than 1")
    if not 1 <= given.refine_trials <= MOST_TRIALS:
        raise InputError(f"--refine-trials {given.refine_trials} is not from 1 to {MOST_TRIALS}")
    options = RefinementOptions(
        rate=given.refine_rate,
        passes=given.refine_passes,
        batch_tokens=given.refine_batch_tokens,
        parts=_parts(given.refine_parts),
        code_steps=given.refine_codes,
        code_drift=given.refine_drift,
        seed=seed,
        timeout=given.refine_timeout,
    )
    return Refining(source=given.refine_data, samples=given.refine_samples, trials=given.refine_trials, options=options)


def _parts(named: str) -> tuple[str, ...]:
    """Return parts that are named by commas, once each and in one order; what is unknown comes last."""
    names = {name.strip() for name in named.split(",") if name.strip()}
    return (*(part for part in PARTS if part in names), *sorted(names.difference(PARTS)))


def refine_flags(refining: Refining) -> dict[str, Any]:
    """Return the flags, by name, that ask for it again; how long it may take is for whoever asks."""
    return {
        "refine": True,
        "refine_data": refining.source,
        "refine_samples": refining.samples,
        "refine_codes": refining.options.code_steps,
        "refine_drift": refining.options.code_drift,
        "refine_parts": ",".join(refining.options.parts),
        "refine_batch_tokens": refining.options.batch_tokens,
        "refine_passes": refining.options.passes,
        "refine_rate": refining.options.rate,
        "refine_trials": refining.trials,
    }


def with_refining_text(plan: BenchPlan, refining: Refining) -> BenchPlan:
    """Add the two texts of refining to the data of a plan, as the last of them.

    The bundled model, of whose own texts calibration leaves little, learns from what it was trained on.
    """
    usual = BUNDLED_TEXT if plan.model.name == BUNDLED else plan.calibration.source
    like = replace(plan.calibration, source=refining.source or usual)
    held_back = min(max(round(HELD_BACK * refining.samples), FEWEST_HELD_BACK), MOST_HELD_BACK)
    training = replace(like, part="refinement", count=refining.samples, minimum=min(FEWEST, refining.samples))
    validation = replace(like, part="validation", count=held_back, minimum=FEWEST_HELD_BACK)
    return replace(plan, data=(*plan.data, training, validation))


def text_of(bench: Bench, training: Sequences, validation: Sequences, refining: Refining) -> RefinementText:
    """Return what refining reads; a warning where that is less than was asked for.

    Raises:
        InputError: If the model has nothing of what is to be tuned, or codes are to move and it is not one whose can.
    """
    require_tunable(bench.model, refining.options.parts)
    if refining.options.code_steps:
        require_movable(bench, training)
    if len(training) < refining.samples:
        log.warning(
            "%s has text left for %d of the %d sequences to refine on; --refine-data takes them from another",
            training.source,
            len(training),
            refining.samples,
        )
    return RefinementText(training=training, validation=validation)


def stage_of(bench: Bench, plan: Plan, text: RefinementText, refining: Refining, store: ResultStore) -> Stage:
    """Return what is refined, as often as was asked for."""
    return Stage(bench=bench, plan=plan, text=text, given=refining.options, trials=refining.trials, store=store)


def refined_bench(
    bench: Bench,
    plan: Plan,
    refining: Refining,
    text: RefinementText,
    judged: Sequence[tuple[TextPlan, Sequences]],
    store: ResultStore,
    progress: Progress,
) -> Bench:
    """Refine what a plan gives, and return the bench on which it is quantized so.

    Args:
        bench: Model, roles and calibration.
        plan: Whose codes are refined.
        refining: How.
        text: What is read.
        judged: Texts that had no part in it; where some are for confirmation, these alone are.
        store: Where results are kept.
        progress: Told how far it is.

    Raises:
        InputError: If the plan has nothing to tune, or the time is less than a step's.
    """
    refined = refine_best(stage_of(bench, plan, text, refining, store), progress)
    made = replace(bench, refined=refined)
    held_out = [named for named in judged if named[0].part == "confirmation"] or list(judged)
    gains = tuple(_gains(bench, made, plan, held_out, store, progress))
    return replace(made, refined=replace(refined, refinement=replace(refined.refinement, gains=gains)))


def _gains(
    before: Bench,
    after: Bench,
    plan: Plan,
    judged: Sequence[tuple[TextPlan, Sequences]],
    store: ResultStore,
    progress: Progress,
) -> Iterator[Gain]:
    texts = [sequences for _, sequences in judged]
    with forgotten_where_codes_differ(store):
        plain, refined = (measure_plan(bench, store, plan, texts, progress) for bench in (before, after))
    for (of, _), first, second in zip(judged, plain, refined, strict=True):
        assert first.score is not None
        assert second.score is not None
        yield gain(of.source, of.part, first.score, second.score)


def gain_lines(gains: Sequence[Gain]) -> list[str]:
    """Say what refining changed on each text, a line each."""
    return [
        f"refining: KL on {gain.sequences} sequences of {gain.source} ({gain.part}) is {gain.kl.verdict} "
        f"({gain.kl} nats per token), NLL {gain.nll.verdict} ({gain.nll})"
        for gain in gains
    ]
