"""The Sobol sampler: settings that fill the space evenly.

Responsible for the sequence, which start-up and the Gaussian process use as well.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.stats import qmc

from hpo.search.samplers.sampler import rest
from hpo.search.twins import Noise, unknown
from hpo.space.space import Space
from hpo.study.record import TrialRecord
from quant.setting import Setting

MOST_SOBOL = 2**12


class Qmc:
    """Goes on with the sequence, whatever was measured."""

    learns = False

    def settings(
        self, space: Space, trials: Sequence[TrialRecord], seed: int, noise: Noise = unknown
    ) -> Iterator[Setting]:
        """Yield the sequence, then what it missed."""
        yield from sobol(space, seed)
        yield from rest(space)


def sobol(space: Space, seed: int) -> Iterator[Setting]:
    """Yield settings that fill the space evenly (a scrambled Sobol sequence)."""
    if space.dimensions:
        points = qmc.Sobol(len(space.dimensions), rng=np.random.default_rng(seed))
        for _ in range(MOST_SOBOL // 64):
            yield from (space.at(point.tolist()) for point in points.random(64))
    else:
        yield space.base
