"""The grid sampler: a few values of every dimension, all of their combinations.

Responsible for their order, which is shuffled: a study that is cut short has seen all of the space.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from hpo.search.twins import Noise, unknown
from hpo.space.space import Space
from hpo.study.record import TrialRecord
from quant.setting import Setting


class Grid:
    """Visits a grid, and nothing beside it."""

    learns = False

    def settings(
        self, space: Space, trials: Sequence[TrialRecord], seed: int, noise: Noise = unknown
    ) -> Iterator[Setting]:
        """Yield the points of the grid in the seed's order."""
        points = space.grid()
        return (points[index] for index in np.random.default_rng(seed).permutation(len(points)))
