"""What a setting is made of: from nearest rounding through each of its ingredients to itself, each step paired.

Responsible for the differences of what `hpo.workers.measuring.measure_steps` measured. Ingredients are added in the
order of their names in a recipe, so a step says what one adds to those before it. May assume one text for all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hpo.study.objective import PERPLEXITY, Objective
from hpo.study.record import Measured
from hpo.study.scores import Scores
from objectives.paired import Difference
from objectives.scoring import Score


@dataclass(frozen=True, kw_only=True)
class Step:
    """One setting on the way from nearest rounding.

    Attributes:
        measured: What was measured; its name says what it adds: `rtn`, `gw-awq`, `+range`.
        score: Its values per sequence.
        change: Itself minus the step before, nats per token of what the objective is a mean of; None for the first.
        total: Itself minus the first; None for the first.
    """

    measured: Measured
    score: Score
    change: Difference | None
    total: Difference | None


def waterfall(
    measured: Sequence[Measured],
    scores: Scores,
    recommended: Measured | None,
    objective: Objective = PERPLEXITY,
) -> tuple[Step, ...]:
    """Compare each step with the one before it, and with the first.

    Args:
        measured: The steps as they are stored.
        scores: Values per sequence.
        recommended: What the study recommends now.
        objective: What is compared.

    Returns:
        The steps; empty where they lead to another setting, or values are missing or damaged.
    """
    if not measured or recommended is None or not _same(measured[-1], recommended):
        return ()
    read = scores.readable(measured)
    if len(read) < len(measured):
        return ()
    _, first = read[0]
    before = [None, *(score for _, score in read)]
    return tuple(
        Step(
            measured=step,
            score=score,
            change=None if previous is None else objective.difference(score, previous),
            total=None if previous is None else objective.difference(score, first),
        )
        for (step, score), previous in zip(read, before, strict=False)
    )


def _same(last: Measured, recommended: Measured) -> bool:
    return (
        last.setting is not None
        and recommended.setting is not None
        and last.setting.canonical() == recommended.setting.canonical()
    )
