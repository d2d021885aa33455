"""When a study has seen enough: before its budget is used up, nothing better is to be expected.

Responsible for the two rules of `--patience` and `--until converged`. May assume that proposals and verdicts compare at
equal bits, so each size class is judged by its own trials.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from hpo.search.acquisition import is_informative
from hpo.search.samplers.gp import candidates
from hpo.search.twins import Noise
from hpo.space.size_class import SIZE_CLASS_FIELDS, SizeClass, size_class_of
from hpo.space.space import Space
from hpo.study.objective import PERPLEXITY, Objective
from hpo.study.record import ENDED, StudyRecord, TrialRecord
from hpo.study.scores import Scores
from objectives.errors import InputError
from objectives.scoring import Score
from quant.parameters import value_text
from quant.setting import Setting

# Pairs of good trials whose differences say how exactly two settings are told apart.
COMPARED = 4
# So many trials are worth their time if together they may gain what can be told from noise. At 1, studies of rough
# landscapes end after ten trials and miss half a percent.
HORIZON = 10
# Values without which nothing is known of how much settings differ.
FEWEST_KNOWN = 10
# Of a continuous dimension; the process knows nothing finer.
EDGE = 0.02


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


def reason_to_stop(stopping: Stopping, space: Space, record: StudyRecord, noise: Noise, seed: int) -> str | None:
    """Say why no further trial is worth its time, in one sentence; None while one is.

    Args:
        stopping: The rules.
        space: Of the study.
        record: The study as it stands.
        noise: How exactly its trials tell settings apart.
        seed: Of the study.
    """
    if stopping.patience is not None and without_improvement(record.counted) >= stopping.patience:
        return f"none of the last {stopping.patience} trials improved on the best of its bits (--patience)"
    if stopping.converged and (converged := convergence(space, record, noise, seed)):
        return f"{converged} (--until converged)"
    return None


def convergence(space: Space, record: StudyRecord, noise: Noise, seed: int) -> str | None:
    """Say that a study has converged, and at which edges of the space, in one sentence; None where it has not."""
    if not has_converged(space, record.trials, noise, seed):
        return None
    bests: dict[SizeClass, Setting] = {}
    for trial in record.complete:
        if trial.size_class is not None and trial.setting is not None:
            bests.setdefault(trial.size_class, trial.setting)
    where = "; ".join(f"{size_class.short}: {edges(space, best)}" for size_class, best in bests.items())
    return (
        f"converged at {where}: beside twins of what was measured, {HORIZON} more trials are not expected to gain the "
        "paired noise"
    )


def edges(space: Space, setting: Setting) -> str:
    """Name the edges of the space that a setting lies at: `beta=0 (lower edge), tau=5 (upper edge)`."""
    named = []
    for dimension in space.dimensions:
        if dimension.choices or dimension.name in SIZE_CLASS_FIELDS or dimension.name not in setting.reads:
            continue
        value = getattr(setting, dimension.name)
        place = dimension.fraction(value)
        near = 0.0 if dimension.discrete else EDGE
        if value == dimension.low or place <= near:
            named.append(f"{dimension.name}={value_text(value)} (lower edge)")
        elif value == dimension.high or place >= 1 - near:
            named.append(f"{dimension.name}={value_text(value)} (upper edge)")
    return ", ".join(named) or "no edge of the space"


def without_improvement(trials: Sequence[TrialRecord]) -> int:
    """Count the trials that have ended since one was better than all before it that its size class holds."""
    bests: dict[SizeClass, float] = {}
    count = 0
    for trial in trials:
        if trial.state not in ENDED:
            continue
        count += 1
        own = trial.size_class
        if trial.value is None or own is None:
            continue
        if all(trial.value < value for size_class, value in bests.items() if own.holds(size_class)):
            bests[own] = trial.value
            count = 0
    return count


def has_converged(space: Space, trials: Sequence[TrialRecord], noise: Noise, seed: int) -> bool:
    """Tell whether `HORIZON` trials of the largest expected improvement gain less than a paired error, at every size.

    Twins of measured settings promise nothing: what can be found among them cannot be told from luck. Not where
    everything that is considered was tried: then the space says when it is used up.

    Args:
        space: Of the study.
        trials: Of the study.
        noise: The error of a size class, in nats per token.
        seed: Of the study.
    """
    if sum(map(is_informative, trials)) < FEWEST_KNOWN:
        return False
    gains: dict[SizeClass, float] = {}
    for candidate in candidates(space, trials, seed, noise):
        # Twins come last.
        gains.setdefault(size_class_of(candidate.setting), 0.0 if candidate.twin else candidate.improvement)
    return bool(gains) and all(HORIZON * gain < noise(size_class) for size_class, gain in gains.items())


def noise_of(record: StudyRecord, scores: Scores) -> Noise:
    """Return how exactly a study tells settings apart, each size class being gone into when it is asked for first."""
    return cache(lambda size_class: paired_noise(record, size_class, scores))


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
