"""Which untried settings promise most: expected improvement on the best trial of equal bits.

Responsible for showing trials to the surrogate - pruned ones with their estimates and the errors of these, running
ones as it expects them - and for the settings that are considered: some all over the space, more around the best. May
assume that at least one trial has a value.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpo.search.surrogate import Surrogate, expected_improvement, fit
from hpo.space.size_class import SizeClass, size_class_of
from hpo.space.space import Space
from hpo.study.record import TrialRecord
from quant.setting import Setting

EVERYWHERE, AROUND, CENTERS = 512, 32, 8
REACHES = (0.02, 0.05, 0.1, 0.2)
# What a fit takes grows with the cube of the trials; the best half and an even choice of the others tell most.
MOST_TRIALS = 150


@dataclass(frozen=True, kw_only=True)
class Promise:
    """A setting and the improvement in mean NLL that is expected of it, in nats per token."""

    setting: Setting
    improvement: float


def promises(space: Space, trials: Sequence[TrialRecord], considered: Sequence[Setting]) -> list[Promise]:
    """The considered settings, the most promising first.

    An improvement is one on the best completed trial of the same size class; where there is none yet, on the best that
    is expected there.
    """
    if not considered:
        return []
    surrogate = _fitted(space, trials)
    running = [trial for trial in trials if trial.state == "RUNNING" and trial.setting is not None]
    bests = _least(
        (trial.size_class, nats(trial)) for trial in trials if trial.state == "COMPLETE" and is_informative(trial)
    )
    if running:
        expected, _ = surrogate.predict(_trial_points(space, running))
        bests = _least([*bests.items(), *zip((trial.size_class for trial in running), expected, strict=True)])
        surrogate = surrogate.believing(_trial_points(space, running))
    points = _points(space, considered)
    size_classes = [size_class_of(setting) for setting in considered]
    mean, deviation = surrogate.predict(points)
    hoped = _least(zip(size_classes, mean, strict=True))
    gain = expected_improvement(mean, deviation, np.array([bests.get(one, hoped[one]) for one in size_classes]))
    order = np.argsort(-gain, kind="stable")
    return [Promise(setting=considered[index], improvement=float(gain[index])) for index in order]


def consider(space: Space, trials: Sequence[TrialRecord], everywhere: Iterator[Setting], seed: int) -> list[Setting]:
    """Settings worth looking at: the first of `everywhere`, and others around the best trials of every size class."""
    generator = np.random.default_rng(seed)
    found = dict.fromkeys(itertools.islice(everywhere, EVERYWHERE))
    known = sorted((trial for trial in trials if is_informative(trial)), key=nats)
    # Not a set: its order would be another one in every process.
    for size_class in dict.fromkeys(trial.size_class for trial in known):
        for trial in [one for one in known if one.size_class == size_class][:CENTERS]:
            assert trial.setting is not None
            center = np.array(space.fractions(trial.setting))
            for number in range(AROUND):
                reach = REACHES[number % len(REACHES)]
                point = center + generator.normal(scale=reach, size=len(center))
                found[space.at(np.clip(point, 0, math.nextafter(1, 0)).tolist())] = None
    return list(found)


def _fitted(space: Space, trials: Sequence[TrialRecord]) -> Surrogate:
    known = telling([trial for trial in trials if is_informative(trial)], MOST_TRIALS)
    values = np.array([nats(trial) for trial in known])
    return fit(_trial_points(space, known), flattened(values), np.array([_variance(trial) for trial in known]))


def flattened(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values that are far worse than most, no worse than the rest: how bad they are tells nothing of the best ones."""
    best, middle = values.min(), np.median(values)
    return np.asarray(np.minimum(values, middle + 2 * (middle - best)))


def _least(values: Iterable[tuple[SizeClass | None, float]]) -> dict[SizeClass | None, float]:
    """The least value of every size class."""
    found: dict[SizeClass | None, float] = {}
    for size_class, value in values:
        found[size_class] = min(float(value), found.get(size_class, math.inf))
    return found


def telling(trials: Sequence[TrialRecord], most: int) -> list[TrialRecord]:
    """The trials that a model learns most from, in their order: the best, and some of the rest.

    The best tell where to look closer; the rest, evenly from best to worst, where not to look.
    """
    known = sorted(trials, key=nats)
    best, rest = known[: most // 2], known[most // 2 :]
    step = max(1.0, len(rest) / (most - most // 2))
    chosen = {trial.number for trial in best}
    chosen |= {rest[int(index * step)].number for index in range(int(len(rest) / step))}
    return [trial for trial in trials if trial.number in chosen]


def is_informative(trial: TrialRecord) -> bool:
    """Whether a value is known of a trial, exactly or nearly."""
    return math.isfinite(nats(trial))


def nats(trial: TrialRecord) -> float:
    """Mean NLL on all tuning text, as far as it is known: differences in it do not grow with the perplexity."""
    if trial.perplexity is not None:
        return math.log(trial.perplexity)
    if trial.state == "PRUNED" and trial.estimate is not None:
        return math.log(trial.estimate.perplexity)
    return math.inf


def _variance(trial: TrialRecord) -> float:
    """Of the error of `nats`."""
    return trial.estimate.variance if trial.state == "PRUNED" and trial.estimate is not None else 0.0


def _trial_points(space: Space, trials: Sequence[TrialRecord]) -> NDArray[np.float64]:
    return _points(space, [trial.setting for trial in trials if trial.setting is not None])


def _points(space: Space, settings: Sequence[Setting]) -> NDArray[np.float64]:
    """Where settings lie in the unit cube, `[settings, dimensions]`."""
    rows = [space.fractions(setting) for setting in settings]
    return np.array(rows).reshape(len(settings), len(space.dimensions))
