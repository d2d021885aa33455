"""fANOVA: how much of a value's variance each parameter explains by itself (Hutter, Hoos and Leyton-Brown, ICML 2014).

Responsible for a random forest and the exact variances of its trees. The numbers are those of Optuna's evaluator, all
trees and leaves at once instead of one after another, so that resampling takes seconds and not minutes. May assume
numerical parameters. Letters: `N` points, `H` parameters, `T` trees, `K` nodes of all trees, `L` leaves, `C` cuts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.intp]


def fanova(points: Floats, values: Floats, bounds: Floats, trees: int, seed: int) -> Floats | None:
    """Compute each parameter's share of the variance over the whole space, adding up to 1.

    Args:
        points: `[N, H]`.
        values: `[N]`.
        bounds: `[H, 2]`, the ends of the space.
        trees: How many the shares are averaged over.
        seed: Of the forest.

    Returns:
        `[H]`; None where no tree finds a difference between points.
    """
    # Imported here: most commands need no importances, and scikit-learn takes a second.
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(n_estimators=trees, max_depth=64, random_state=seed).fit(points, values)
    leaves = _leaves([estimator.tree_ for estimator in forest.estimators_], bounds)
    total = leaves.summed(leaves.volumes * (leaves.values - leaves.means[leaves.trees]) ** 2)
    differs = total > 0
    if not differs.any():
        return None
    main = np.array([_main_variances(leaves, place)[differs] / total[differs] for place in range(len(bounds))])
    shares = main.mean(axis=1)
    # A forest of interactions alone prefers no parameter.
    return shares / shares.sum() if shares.sum() > 0 else np.full(len(bounds), 1 / len(bounds))


@dataclass(frozen=True, kw_only=True)
class _Leaves:
    """The leaves of all trees: boxes in a space whose sides are 1 long.

    Attributes:
        trees: `[L]`, the tree that each belongs to.
        low: `[L, H]`.
        high: `[L, H]`.
        values: `[L]`, what is predicted there.
        count: Trees.
    """

    trees: Places
    low: Floats
    high: Floats
    values: Floats
    count: int

    @property
    def volumes(self) -> Floats:
        """Return `[L]`; they add up to 1 for each tree."""
        volumes: Floats = np.prod(self.high - self.low, axis=1)
        return volumes

    @property
    def means(self) -> Floats:
        """Return `[T]`, each tree's prediction averaged over the space."""
        return self.summed(self.volumes * self.values)

    def summed(self, terms: Floats) -> Floats:
        """Add up terms of leaves by tree: `[T]` from `[L]`."""
        return np.bincount(self.trees, terms, self.count).astype(float)


def _leaves(trees: Sequence[Any], bounds: Floats) -> _Leaves:
    """Cut the space down from the roots, one depth of all trees at a time."""
    sizes = [tree.node_count for tree in trees]
    roots = np.cumsum([0, *sizes[:-1]])
    owner = np.repeat(np.arange(len(trees)), sizes)
    left, right, feature, threshold, value = (
        np.concatenate([getattr(tree, name).reshape(-1) for tree in trees])
        for name in ("children_left", "children_right", "feature", "threshold", "value")
    )
    low, high = np.zeros((len(owner), len(bounds))), np.ones((len(owner), len(bounds)))
    nodes = roots
    while nodes.size:
        inner = nodes[feature[nodes] >= 0]
        axis = feature[inner]
        cut = (threshold[inner] - bounds[axis, 0]) / (bounds[axis, 1] - bounds[axis, 0])
        below, above = (children[inner] + roots[owner[inner]] for children in (left, right))
        for child in (below, above):
            low[child], high[child] = low[inner], high[inner]
        high[below, axis] = low[above, axis] = cut
        nodes = np.concatenate([below, above])
    leaf = feature < 0
    return _Leaves(trees=owner[leaf], low=low[leaf], high=high[leaf], values=value[leaf], count=len(trees))


def _main_variances(leaves: _Leaves, place: int) -> Floats:
    """Compute the variance `[T]` of each tree's prediction along one parameter, averaged over all others.

    That is a step function of the parameter: a leaf adds its part where it begins and takes it away where it ends.
    """
    low, high = leaves.low[:, place], leaves.high[:, place]
    parts = leaves.values * np.prod(np.delete(leaves.high - leaves.low, place, axis=1), axis=1)
    cuts = np.unique([low, high])
    steps = np.zeros((leaves.count, len(cuts)))
    for ends, sign in ((low, 1), (high, -1)):
        np.add.at(steps, (leaves.trees, np.searchsorted(cuts, ends)), sign * parts)
    along = np.cumsum(steps, axis=1)[:, :-1]
    squared: Floats = (along - leaves.means[:, None]) ** 2
    return squared @ np.diff(cuts)
