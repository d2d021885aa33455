"""Which untried settings to try next: the largest expected improvement on the best trial of equal bits.

Responsible for showing trials to the surrogate - pruned ones with their estimates and the errors of these, running
ones as it expects them - and for the settings that are considered: some all over the space, more around the best. May
assume that at least one trial has a value.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpo.search.front import expected_hypervolume, least
from hpo.search.surrogate import Surrogate, expected_improvement, fit
from hpo.search.twins import Noise, are_twins, unknown
from hpo.space.size_class import size_class_of
from hpo.space.space import Space
from hpo.study.record import TrialRecord
from quant.setting import Setting

EVERYWHERE, AROUND, CENTERS = 512, 32, 8
# Standard deviations of the steps away from a center, in widths of the cube.
STEP_SCALES = (0.02, 0.05, 0.1, 0.2)
# What a fit takes grows with the cube of the trials; the best half and an even choice of the others tell most.
MOST_TRIALS = 150


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A setting and the improvement that is expected of it, in nats per token of what the objective is a mean of.

    On a front they are summed over its budgets.

    `twin` says that it cannot be told from a measured one.
    """

    setting: Setting
    improvement: float
    twin: bool = False


def best_candidates(
    space: Space, trials: Sequence[TrialRecord], considered: Sequence[Setting], noise: Noise = unknown
) -> list[Candidate]:
    """Sort the considered settings by their expected improvement, the largest first; then twins of measured ones.

    An improvement is one on the best completed trial of the same size class; where there is none yet, on the best that
    is expected there. On a front it is what the front gains at the setting's budget and at every larger one (`front`).
    A setting that cannot be told from a measured one beyond the noise is its twin; what is measured
    elsewhere counts as much and teaches more. Twins come by what is not known of them, the least known first.
    """
    if not considered:
        return []
    chosen = most_informative([trial for trial in trials if is_informative(trial)], MOST_TRIALS)
    surrogate = _fitted(space, chosen)
    running = [trial for trial in trials if trial.state == "RUNNING" and trial.setting is not None]
    bests = least(
        (trial.size_class, nats_of(trial)) for trial in trials if trial.state == "COMPLETE" and is_informative(trial)
    )
    if running:
        expected, _ = surrogate.predict(_trial_points(space, running))
        bests = least([*bests.items(), *zip((trial.size_class for trial in running), expected, strict=True)])
        surrogate = surrogate.fantasized(_trial_points(space, running))
    points = _points(space, considered)
    size_classes = [size_class_of(setting) for setting in considered]
    mean, deviation = surrogate.predict(points)
    if space.is_front:
        gain = expected_hypervolume(space.numbers("bit_budget"), bests, size_classes, mean, deviation)
    else:
        expected_bests = least(zip(size_classes, mean, strict=True))
        best = np.array([bests.get(size_class, expected_bests[size_class]) for size_class in size_classes])
        gain = expected_improvement(mean, deviation, best)
    measured = [*chosen, *running]
    classes = [trial.size_class for trial in measured]
    twins = are_twins(surrogate, points, size_classes, _trial_points(space, measured), classes, noise)
    order = np.lexsort((-np.where(twins, deviation, gain), twins))
    return [
        Candidate(setting=considered[index], improvement=float(gain[index]), twin=bool(twins[index])) for index in order
    ]


def considered_settings(
    space: Space, trials: Sequence[TrialRecord], everywhere: Iterator[Setting], seed: int
) -> list[Setting]:
    """List settings worth looking at: the first of `everywhere`, and others around the best of every size class."""
    generator = np.random.default_rng(seed)
    settings = dict.fromkeys(itertools.islice(everywhere, EVERYWHERE))
    informative = sorted((trial for trial in trials if is_informative(trial)), key=nats_of)
    # Not a set: its order would be another one in every process.
    for size_class in dict.fromkeys(trial.size_class for trial in informative):
        for trial in [trial for trial in informative if trial.size_class == size_class][:CENTERS]:
            assert trial.setting is not None
            center = np.array(space.fractions(trial.setting))
            for number in range(AROUND):
                scale = STEP_SCALES[number % len(STEP_SCALES)]
                point = center + generator.normal(scale=scale, size=len(center))
                settings[space.at(np.clip(point, 0, math.nextafter(1, 0)).tolist())] = None
    return list(settings)


def _fitted(space: Space, trials: Sequence[TrialRecord]) -> Surrogate:
    values = np.array([nats_of(trial) for trial in trials])
    return fit(_trial_points(space, trials), winsorized(values), np.array([_variance(trial) for trial in trials]))


def winsorized(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cap values that are far worse than most (winsorize them): how bad they are tells nothing of the best ones."""
    best, middle = values.min(), np.median(values)
    return np.asarray(np.minimum(values, middle + 2 * (middle - best)))


def most_informative(trials: Sequence[TrialRecord], most: int) -> list[TrialRecord]:
    """Choose the trials that a model learns most from, in their order: the best, and some of the rest.

    The best tell where to look closer; the rest, evenly from best to worst, where not to look.
    """
    ordered = sorted(trials, key=nats_of)
    best, rest = ordered[: most // 2], ordered[most // 2 :]
    step = max(1.0, len(rest) / (most - most // 2))
    chosen = {trial.number for trial in best}
    chosen |= {rest[int(index * step)].number for index in range(int(len(rest) / step))}
    return [trial for trial in trials if trial.number in chosen]


def is_informative(trial: TrialRecord) -> bool:
    """Tell whether a value is known of a trial, exactly or nearly."""
    return math.isfinite(nats_of(trial))


def nats_of(trial: TrialRecord) -> float:
    """Return a trial's value in nats per token, measured or estimated; infinite where it is unknown.

    Of a perplexity that is the mean NLL: differences in it do not grow with the perplexity.
    """
    if trial.value is not None:
        return trial.objective.to_nats(trial.value)
    if trial.state == "PRUNED" and trial.estimate is not None:
        return trial.objective.to_nats(trial.estimate.value)
    return math.inf


def _variance(trial: TrialRecord) -> float:
    """Return the variance of the error of `nats_of`, squared nats."""
    return trial.estimate.variance if trial.state == "PRUNED" and trial.estimate is not None else 0.0


def _trial_points(space: Space, trials: Sequence[TrialRecord]) -> NDArray[np.float64]:
    return _points(space, [trial.setting for trial in trials if trial.setting is not None])


def _points(space: Space, settings: Sequence[Setting]) -> NDArray[np.float64]:
    """Place settings in the unit cube, `[settings, dimensions]`."""
    rows = [space.fractions(setting) for setting in settings]
    return np.array(rows).reshape(len(settings), len(space.dimensions))
