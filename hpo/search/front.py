"""The front of bytes and damage: what of each budget is best, and what a setting may be expected to add.

Responsible for the hypervolume, the area between the front and the worst of it over budgets in even steps, and for its
expected improvement. Bytes are known before anything is measured, so that this is a sum of expected improvements, one
for each budget that the setting would serve: exact, where two uncertain values take an integral (Emmerich, Deutz and
Klinkenberg 2011, IEEE Congress on Evolutionary Computation). May assume that smaller values are better, and that what
a budget holds is held by every larger one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from hpo.search.surrogate import Array, expected_improvement
from hpo.space.size_class import SizeClass

Bests = Mapping[SizeClass | None, float]
"""The least value of every size class."""


def least(values: Iterable[tuple[SizeClass | None, float]]) -> dict[SizeClass | None, float]:
    """Find the least value of every size class."""
    bests: dict[SizeClass | None, float] = {}
    for size_class, value in values:
        bests[size_class] = min(float(value), bests.get(size_class, math.inf))
    return bests


def levels(budgets: Sequence[float], bests: Bests) -> Array:
    """Return the front at each of ascending budgets: the least value of what it holds; infinite before there is one."""
    values = [(size_class.bit_budget, value) for size_class, value in bests.items() if size_class is not None]
    return np.array([min((value for bits, value in values if bits <= budget), default=math.inf) for budget in budgets])


def hypervolume(budgets: Sequence[float], bests: Bests, worst: float) -> float:
    """Return what a front is below `worst`, summed over ascending budgets."""
    return float(np.maximum(worst - levels(budgets, bests), 0).sum())


def expected_hypervolume(
    budgets: Sequence[float], bests: Bests, size_classes: Sequence[SizeClass], mean: Array, deviation: Array
) -> Array:
    """Compute the expected improvement of the hypervolume by settings of normal values.

    A budget that nothing was measured for counts as the worst of the front and of what is expected.

    Args:
        budgets: Of the front, ascending, in even steps.
        bests: What was measured.
        size_classes: Of the settings, `[n]`.
        mean: Expected value of each, `[n]`.
        deviation: Of each, `[n]`.

    Returns:
        In the unit of the values, summed over budgets, `[n]`.
    """
    front = levels(budgets, bests)
    front = np.where(np.isfinite(front), front, max([*bests.values(), float(mean.max())]))
    own = np.array([size_class.bit_budget for size_class in size_classes])
    gains = expected_improvement(mean[:, None], deviation[:, None], front[None, :])
    serves = np.array(budgets)[None, :] >= own[:, None]
    return np.asarray((gains * serves).sum(axis=1))
