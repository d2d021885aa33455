"""Which settings are twins of measured ones: what is expected to lie between them is far below the noise.

Responsible for that one question. Only settings of one size class can be twins, because only these are compared. May
assume that points lie in the unit cube of the space.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hpo.search.surrogate import Surrogate
from hpo.space.size_class import SizeClass

Array = NDArray[np.float64]
Noise = Callable[[SizeClass], float]
"""The standard error of a paired difference between good settings of a size class, nats per token; 0 if unknown."""


# Of the noise. At the whole of it nearly everything is a twin where settings differ by rounding, and studies lose the
# best (benchmarks/RESULTS.md).
SHARE = 0.5


def unknown(_: SizeClass) -> float:
    """No noise is known, so that nothing is a twin."""
    return 0.0


def are_twins(
    surrogate: Surrogate,
    points: Array,
    size_classes: Sequence[SizeClass],
    measured: Array,
    measured_classes: Sequence[SizeClass | None],
    noise: Noise,
) -> NDArray[np.bool_]:
    """Tell which settings are expected to differ from a measured one by less than half of the noise.

    The difference is that of what varies smoothly over the space, as its root mean square: a slope that is known tells
    two settings apart as well as not knowing does.

    Args:
        surrogate: Fitted to the measured settings.
        points: Of the settings, `[n, dimensions]`.
        size_classes: Theirs.
        measured: Points of the measured settings, `[m, dimensions]`.
        measured_classes: Theirs.
        noise: Of each size class.

    Returns:
        bool `[n]`.
    """
    mean, deviation = surrogate.differences(points, measured)
    classes = {size_class: number for number, size_class in enumerate(dict.fromkeys(size_classes))}
    own = np.array([classes[size_class] for size_class in size_classes])
    others = np.array([-1 if size_class is None else classes.get(size_class, -1) for size_class in measured_classes])
    least = SHARE * np.array([noise(size_class) for size_class in classes])
    near = np.hypot(mean, deviation) < least[own][:, None]
    return np.asarray((near & (own[:, None] == others)).any(axis=1))
