"""Shares of the outcome by PED-ANOVA and fANOVA, each with an interval from resampled trials.

Responsible for the numbers and for how sure they are; which trials they are over is decided before. May assume two
parameters or more, and values that differ.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.quiet import quiet_optuna
from hpo.verdict.fanova import Floats, fanova

# PED-ANOVA asks what the best trials have in common. A tenth of few trials is chance: over 40 synthetic studies of 20
# trials with one parameter that matters out of four, it came first in 62 % with 2 best trials and in all with 6.
BEST_SHARE, FEWEST_BEST, MOST_BEST_SHARE = 0.1, 6, 0.5
SEED = 0
CONFIDENCE = 0.9
RESAMPLES = 100
# A forest's trees are averaged, so fewer of them blur a share and do not move it.
TREES, TREES_OF_A_RESAMPLE = 64, 8
# For dashboards, which show the same trials again and again.
REMEMBERED = 32

Numerical = FloatDistribution | IntDistribution


@dataclass(frozen=True, kw_only=True)
class Share:
    """How much of the outcome a hyperparameter explains, from 0 to 1, with its 90 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def half_widths(self) -> tuple[float, float]:
        """Return the parts of the interval below the value and above it, as error bars are drawn."""
        return self.value - self.low, self.high - self.value

    def percent(self, digits: int) -> str:
        """Write it as `36.2 % [20.1, 51.7]`, with so many digits."""
        value, low, high = (f"{100 * share:.{digits}f}" for share in (self.value, self.low, self.high))
        return f"{value} % [{low}, {high}]"


@dataclass(frozen=True, kw_only=True)
class ShareTable:
    """Shares by parameter: of either evaluator, adding up to 1, and their average."""

    ped_anova: Mapping[str, Share]
    fanova: Mapping[str, Share]
    mean: Mapping[str, Share]


@lru_cache(REMEMBERED)
def evaluate(
    points: tuple[tuple[float, ...], ...], values: tuple[float, ...], space: tuple[tuple[str, Numerical], ...]
) -> ShareTable:
    """Compute the shares of all parameters; equal arguments give equal numbers.

    Intervals are percentiles over trials drawn with replacement. Where the evaluators lean another way on repeated
    trials than on all of them, an interval is widened to reach the share itself.

    Args:
        points: Of each trial its parameters, in the order of `space`.
        values: Of each trial what is to be explained, lower being better.
        space: Names of parameters and their distributions.
    """
    names = [name for name, _ in space]
    everything = np.arange(len(values))
    with quiet_optuna():
        sample = _Sample(points, values, space)
        shares = sample.shares(everything, TREES, SEED)
        assert shares is not None, "values differ"
        resampled = np.stack(list(islice(_resampled(sample, len(values)), RESAMPLES)))
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    ped_anova, fanova, mean = (_with_intervals(names, *rows) for rows in zip(shares, low, high, strict=True))
    return ShareTable(ped_anova=ped_anova, fanova=fanova, mean=mean)


def _with_intervals(names: Sequence[str], values: Floats, low: Floats, high: Floats) -> dict[str, Share]:
    return {
        name: Share(value=value, low=min(below, value), high=max(above, value))
        for name, value, below, above in zip(names, values.tolist(), low.tolist(), high.tolist(), strict=True)
    }


def _resampled(sample: "_Sample", size: int) -> Iterator[Floats]:
    """Yield shares of trials drawn with replacement, without end; draws that leave nothing to explain are skipped."""
    random = np.random.default_rng(SEED)
    for seed in count():
        shares = sample.shares(random.integers(size, size=size), TREES_OF_A_RESAMPLE, seed)
        if shares is not None:
            yield shares


class _Sample:
    """Trials of which any selection, with repetitions, can be evaluated."""

    def __init__(
        self,
        points: Sequence[Sequence[float]],
        values: Sequence[float],
        space: Sequence[tuple[str, Numerical]],
    ) -> None:
        self._names = [name for name, _ in space]
        self._points, self._values = np.array(points, float), np.array(values)
        self._bounds = np.array([[distribution.low, distribution.high] for _, distribution in space], float)
        self._shown = _Shown()
        self._study = optuna.create_study(storage=self._shown, direction="minimize")
        self._study.add_trials(
            create_trial(value=value, params=dict(zip(self._names, point, strict=True)), distributions=dict(space))
            for point, value in zip(points, values, strict=True)
        )
        self._trials = self._study.get_trials()

    def shares(self, chosen: NDArray[np.int64], trees: int, seed: int) -> Floats | None:
        """Compute those of the trials at these places; rows: PED-ANOVA, fANOVA, mean. None where nothing differs."""
        variance = fanova(self._points[chosen], self._values[chosen], self._bounds, trees, seed)
        if variance is None:
            return None
        best = min(MOST_BEST_SHARE, max(BEST_SHARE, FEWEST_BEST / len(chosen)))
        self._shown.trials = [self._trials[place] for place in chosen]
        evaluator = PedAnovaImportanceEvaluator(target_quantile=best)
        importances = get_param_importances(self._study, evaluator=evaluator, params=self._names)
        best_trials = np.array([importances[name] for name in self._names])
        return np.stack([best_trials, variance, (best_trials + variance) / 2])


class _Shown(InMemoryStorage):
    """A storage in which trials appear as they are drawn: copying each of them into a new study takes longer than all
    else."""

    trials: list[FrozenTrial] | None = None

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return those that are shown; before any is, those that were added."""
        return super().get_all_trials(study_id, deepcopy, states) if self.trials is None else self.trials
