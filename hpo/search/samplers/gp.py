"""The Gaussian process: settings of the greatest expected improvement at equal bits.

Responsible for which settings are considered at a proposal. May assume that at least one trial has a value.
"""

from collections.abc import Iterator, Sequence

from hpo.search.acquisition import Candidate, best_candidates, considered_settings
from hpo.search.samplers.qmc import sobol
from hpo.search.samplers.sampler import draw, rest, tried, untried
from hpo.search.twins import Noise, unknown
from hpo.space.space import Space
from hpo.study.record import TrialRecord
from quant.setting import Setting


class Gp:
    """Expects improvement on the best trial of equal bits."""

    learns = True

    def settings(
        self, space: Space, trials: Sequence[TrialRecord], seed: int, noise: Noise = unknown
    ) -> Iterator[Setting]:
        """Yield settings by their expected improvement, then twins of measured ones, then what was not considered."""
        yield from (candidate.setting for candidate in candidates(space, trials, draw(trials, seed), noise))
        yield from rest(space)


def candidates(space: Space, trials: Sequence[TrialRecord], seed: int, noise: Noise = unknown) -> list[Candidate]:
    """Sort untried settings, the one of greatest expected improvement first; empty where all considered were tried.

    May assume that at least one trial has a value.
    """
    considered = considered_settings(space, trials, sobol(space, seed), seed)
    return best_candidates(space, trials, list(untried(iter(considered), tried(trials))), noise)
