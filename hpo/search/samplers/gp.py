"""The Gaussian process: settings of the greatest expected improvement at equal bits.

Responsible for which settings are considered at a proposal. May assume that at least one trial has a value.
"""

from collections.abc import Iterator, Sequence

from hpo.search.acquisition import Promise, consider, promises
from hpo.search.samplers.qmc import sobol
from hpo.search.samplers.sampler import draw, rest, tried, untried
from hpo.space.space import Space
from hpo.study.record import TrialRecord
from quant.setting import Setting


class Gp:
    """Expects improvement on the best trial of equal bits."""

    learns = True

    def settings(self, space: Space, trials: Sequence[TrialRecord], seed: int) -> Iterator[Setting]:
        """What promises most, then what was not considered."""
        yield from (promise.setting for promise in promising(space, trials, draw(trials, seed)))
        yield from rest(space)


def promising(space: Space, trials: Sequence[TrialRecord], seed: int) -> list[Promise]:
    """Untried settings, the one of greatest expected improvement first; empty where all that are considered were tried.

    May assume that at least one trial has a value.
    """
    considered = consider(space, trials, sobol(space, seed), seed)
    return promises(space, trials, list(untried(iter(considered), tried(trials))))
