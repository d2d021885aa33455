"""When a study has seen enough: before its budget is used up, nothing better is to be expected.

Responsible for the two rules of `--patience` and `--until converged`. May assume that proposals and verdicts compare at
equal bits, so each size class is judged by its own trials.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hpo.search.acquisition import is_informative
from hpo.search.samplers.gp import candidates
from hpo.space.size_class import SizeClass, size_class_of
from hpo.space.space import Space
from hpo.study.objective import PERPLEXITY, Objective
from hpo.study.record import ENDED, StudyRecord, TrialRecord
from hpo.study.scores import Scores
from objectives.errors import InputError
from objectives.scoring import Score

# Pairs of good trials whose differences say how exactly two settings are told apart.
COMPARED = 4
# So many trials are worth their time if together they may gain what can be told from noise. At 1, studies of rough
# landscapes end after ten trials and miss half a percent.
HORIZON = 10
# Values without which nothing is known of how much settings differ.
FEWEST_KNOWN = 10


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """When to stop early.

    Attributes:
        converged: Once what a few more trials may be expected to gain is below the paired noise.
        patience: Once so many trials in a row improved on nothing; None for never.
    """

    converged: bool = False
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise InputError(f"--patience {self.patience} is not at least 1")


def reason_to_stop(stopping: Stopping, space: Space, record: StudyRecord, scores: Scores, seed: int) -> str | None:
    """Say why no further trial is worth its time, in one sentence; None while one is.

    Args:
        stopping: The rules.
        space: Of the study.
        record: The study as it stands.
        scores: Its values per sequence.
        seed: Of the study.
    """
    if stopping.patience is not None and without_improvement(record.counted) >= stopping.patience:
        return f"none of the last {stopping.patience} trials improved on the best of its bits (--patience)"
    if stopping.converged and has_converged(
        space, record.trials, lambda size_class: paired_noise(record, size_class, scores), seed
    ):
        return f"what {HORIZON} more trials may be expected to gain is below the paired noise (--until converged)"
    return None


def without_improvement(trials: Sequence[TrialRecord]) -> int:
    """Count the trials that have ended since one was better than all before it of its size class."""
    bests: dict[object, float] = {}
    count = 0
    for trial in trials:
        if trial.state not in ENDED:
            continue
        count += 1
        if trial.value is not None and trial.value < bests.get(trial.size_class, math.inf):
            bests[trial.size_class] = trial.value
            count = 0
    return count


def has_converged(space: Space, trials: Sequence[TrialRecord], noise: Callable[[SizeClass], float], seed: int) -> bool:
    """Tell whether `HORIZON` trials of the largest expected improvement gain less than a paired error, at every size.

    Not where everything that is considered was tried: then the space says when it is used up.

    Args:
        space: Of the study.
        trials: Of the study.
        noise: The error of a size class, in nats per token.
        seed: Of the study.
    """
    if sum(map(is_informative, trials)) < FEWEST_KNOWN:
        return False
    gains: dict[SizeClass, float] = {}
    for candidate in candidates(space, trials, seed):
        gains.setdefault(size_class_of(candidate.setting), candidate.improvement)
    return bool(gains) and all(HORIZON * gain < noise(size_class) for size_class, gain in gains.items())


def paired_noise(record: StudyRecord, size_class: SizeClass, scores: Scores) -> float:
    """Return the standard error of a difference between good settings of one size class, nats per token; 0 if unknown.

    The best trial is compared with the next ones, and with the references of its bits, as far as they can be read.
    """
    good = [trial for trial in record.complete if trial.size_class == size_class][: 1 + COMPARED]
    references = [reference for reference in record.references if reference.size_class == size_class] if good else []
    return median_error([score for _, score in scores.readable([*good, *references])], record.objective)


def median_error(scores: Sequence[Score], objective: Objective = PERPLEXITY) -> float:
    """Return the median standard error of differences to the first score, in nats per token; 0 where there are none."""
    errors = [objective.difference(score, scores[0]).standard_error for score in scores[1:]]
    return float(np.median([error for error in errors if math.isfinite(error)] or [0.0]))
