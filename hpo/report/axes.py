"""The hyperparameters that vary, as the axes of figures.

Responsible for their labels, scales and ticks. May assume that every dimension of a space has several values.
"""

import math
from dataclasses import dataclass

import numpy as np

from hpo.space.dimension import Value
from hpo.space.space import Space
from quant.parameters import PARAMETERS, Scale, value_text

NICE = (1.0, 2.0, 5.0)
MARGIN = 0.04


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One hyperparameter that varies: the field of a setting, its bounds and its scale.

    Where its values are names or truths, `choices` has them, and a number stands for its place among them.
    """

    name: str
    low: float
    high: float
    scale: Scale
    whole: bool
    choices: tuple[str | bool, ...] = ()

    @property
    def label(self) -> str:
        """Name it as along an axis."""
        return label_of(self.name)

    @property
    def symbol(self) -> str:
        """Name it where there is little room."""
        return PARAMETERS[self.name].symbol if self.name in PARAMETERS else self.name

    @property
    def ticks(self) -> list[float]:
        """List values worth naming, ascending."""
        if self.choices:
            return [float(place) for place in range(len(self.choices))]
        if self.scale == "log2":
            return [2.0**power for power in range(round(math.log2(self.low)), round(math.log2(self.high)) + 1)]
        if self.scale == "log":
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            named = [nice * 10.0**power for power in powers for nice in NICE]
            inside = [tick for tick in named if self.low <= tick * (1 + 1e-9) and tick <= self.high * (1 + 1e-9)]
            return inside if len(inside) > 1 else [self.low, self.high]
        evenly = np.linspace(self.low, self.high, 5).round(0 if self.whole else 3)
        return [float(tick) for tick in dict.fromkeys(evenly)]

    def number(self, value: Value) -> float:
        """Find the number that stands for a value of a setting."""
        return float(self.choices.index(value)) if self.choices else float(value)

    def text(self, number: float) -> str:
        """Name the value that a number stands for."""
        return value_text(self.choices[round(number)]) if self.choices else f"{number:g}"

    def fraction(self, value: float) -> float:
        """Place `value` between low (0) and high (1) on this scale."""
        if self.scale == "linear":
            return (value - self.low) / (self.high - self.low)
        return math.log(value / self.low) / math.log(self.high / self.low)

    def at(self, fraction: float) -> float:
        """Find the value at a fraction: the inverse of `fraction`."""
        if self.scale == "linear":
            return float(self.low + fraction * (self.high - self.low))
        return float(self.low * (self.high / self.low) ** fraction)

    @property
    def ends(self) -> tuple[float, float]:
        """Return its bounds with room for the marks on them."""
        return self.at(-MARGIN), self.at(1 + MARGIN)


def label_of(name: str) -> str:
    """Name a hyperparameter as figures and tables do; one that is not ours keeps its name."""
    return PARAMETERS[name].label if name in PARAMETERS else name


def varied_axes(space: Space) -> tuple[Axis, ...]:
    """Make the axes of what a study searches."""
    return tuple(
        Axis(
            name=dimension.name,
            low=dimension.low,
            high=dimension.high,
            scale=dimension.scale,
            whole=dimension.integer,
            choices=dimension.choices,
        )
        for dimension in space.dimensions
    )
