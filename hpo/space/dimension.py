"""One dimension of the search space: its bounds, its scale, and its values as Optuna and as settings have them.

Responsible for the default dimensions, for rounding, and for the inverse pairs `encode` and `decode`, `fraction` and
`at`. May assume nothing about the model.
"""

import math
from dataclasses import dataclass

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import Trial

from objectives.errors import InputError
from quant.parameters import PARAMETERS, SEARCHED, Parameter, Scale, bound_text

GRID_LEVELS = 5
# What settings are rounded to: finer differences change nothing, and a rounded setting can be typed again.
DECIMALS, DIGITS = 3, 3
Number = int | float


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One hyperparameter.

    Attributes:
        name: The field of `Setting`.
        low: Smallest value, included, in the type of its values.
        high: Largest value, included.
        scale: `log2` holds powers of two only; what Optuna sees of them is the exponent, so their order is kept.
        integer: Whether values are whole; those of `log2` are, and whole ones on a `log` scale do not occur.
        step: Between neighbouring values, from `low` on, of a linear scale; None where all values are possible.
    """

    name: str
    low: Number
    high: Number
    scale: Scale = "linear"
    integer: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise InputError(f"{self.name}: the lower bound {self.low:g} is above the upper bound {self.high:g}")

    @property
    def parameter(self) -> str:
        """Its name in Optuna, which says when it is an exponent."""
        return f"log2_{self.name}" if self.scale == "log2" else self.name

    @property
    def discrete(self) -> bool:
        """Whether its values can be counted."""
        return self.integer or self.step is not None

    @property
    def lists(self) -> bool:
        """Whether its values are written one by one: sizes, and what goes in steps."""
        return self.scale == "log2" or self.step is not None

    @property
    def distribution(self) -> FloatDistribution | IntDistribution:
        """Its range in Optuna."""
        if self.scale == "log2":
            return IntDistribution(round(math.log2(self.low)), round(math.log2(self.high)))
        if self.integer:
            return IntDistribution(round(self.low), round(self.high))
        return FloatDistribution(self.low, self.high, log=self.scale == "log", step=self.step)

    def suggest(self, trial: Trial) -> None:
        """Let a trial have this parameter, by the value that it was queued with."""
        found = self.distribution
        if isinstance(found, IntDistribution):
            trial.suggest_int(self.parameter, found.low, found.high)
        else:
            trial.suggest_float(self.parameter, found.low, found.high, log=found.log, step=found.step)

    def encode(self, value: Number) -> Number:
        """What Optuna calls `value`."""
        return round(math.log2(value)) if self.scale == "log2" else value

    def decode(self, value: Number) -> Number:
        """The inverse of `encode`, rounded to what a setting holds."""
        return 2 ** round(value) if self.scale == "log2" else self.rounded(value)

    def rounded(self, value: Number) -> Number:
        """The nearest value of this dimension that can be typed."""
        if self.scale == "log2":
            found: Number = 2 ** round(math.log2(value))
        elif self.integer:
            found = round(value)
        elif self.step is not None:
            found = round(self.low + round((value - self.low) / self.step) * self.step, DECIMALS)
        elif self.scale == "log":
            found = float(f"{value:.{DIGITS}g}")
        else:
            found = round(float(value), DECIMALS)
        return min(max(found, self.low), self.high)

    def at(self, fraction: float) -> Number:
        """The value at `fraction` of the way from low to high, on its scale; `fraction` in `[0, 1)`."""
        if self.discrete:
            values = self.every()
            return values[min(len(values) - 1, int(fraction * len(values)))]
        if self.scale == "log":
            return self.rounded(math.exp(math.log(self.low) + fraction * math.log(self.high / self.low)))
        return self.rounded(self.low + fraction * (self.high - self.low))

    def fraction(self, value: Number) -> float:
        """Where `value` lies between low and high on this scale: the inverse of `at`."""
        if self.discrete:
            values = self.every()
            return (values.index(self.rounded(value)) + 0.5) / len(values)
        if self.scale == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def count(self) -> int | None:
        """How many values it has; None where it is continuous."""
        return len(self.every()) if self.discrete else None

    def every(self) -> list[Number]:
        """All values of a dimension that is not continuous."""
        if self.step is not None:
            steps = math.floor((self.high - self.low) / self.step + 1e-6)
            return [round(self.low + number * self.step, DECIMALS) for number in range(steps + 1)]
        if self.scale == "log2":
            return list(powers_of_two(self.low, self.high))
        return list(range(round(self.low), round(self.high) + 1))

    def levels(self) -> list[Number]:
        """The values that a grid visits: all sizes, or a few values from end to end."""
        return sorted({self.at(min(step / (GRID_LEVELS - 1), math.nextafter(1, 0))) for step in range(GRID_LEVELS)})

    @property
    def typed(self) -> str:
        """The dimension as `make_space` reads it: `0.2..0.8`, `32,64,128`."""
        if self.lists:
            return ",".join(map(bound_text, self.every()))
        return f"{bound_text(self.low)}..{bound_text(self.high)}"

    def __str__(self) -> str:
        return f"{self.typed} (log)" if self.scale == "log" else self.typed


def _dimension(parameter: Parameter) -> Dimension:
    search = parameter.search
    assert search is not None
    whole = parameter.type is int
    return Dimension(
        name=parameter.name, low=search.low, high=search.high, scale=search.scale, integer=whole, step=search.step
    )


DIMENSIONS = {name: _dimension(PARAMETERS[name]) for name in SEARCHED}
"""Whatever can be searched, in its default range; a study searches those that its method reads."""


def powers_of_two(low: float, high: float) -> list[int]:
    """The powers of two from low to high, both included where they are some."""
    return [2**power for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
