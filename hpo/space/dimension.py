"""One dimension of the search space: its bounds, its scale, and its values as Optuna and as settings have them.

Responsible for the default dimensions, for rounding, and for the inverse pairs `encode` and `decode`, `fraction` and
`at`. May assume nothing about the model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from objectives.errors import InputError
from quant.parameters import PARAMETERS, SEARCHED, Choices, Parameter, Scale, bound_text, value_text

GRID_LEVELS = 5
# What settings are rounded to: finer differences change nothing, and a rounded setting can be typed again.
DECIMALS, DIGITS = 3, 3
Number = int | float
Value = int | float | str
"""Of a setting's field; truths are whole numbers."""


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
        choices: The values, where they are names or truths; `low` and `high` are then places among them.
    """

    name: str
    low: Number
    high: Number
    scale: Scale = "linear"
    integer: bool = False
    step: float | None = None
    choices: tuple[str | bool, ...] = ()

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
        return self.integer or self.step is not None or bool(self.choices)

    @property
    def lists(self) -> bool:
        """Whether its values are written one by one: names, sizes, and what goes in steps."""
        return self.scale == "log2" or self.step is not None or bool(self.choices)

    @property
    def distribution(self) -> CategoricalDistribution | FloatDistribution | IntDistribution:
        """Its range in Optuna."""
        if self.choices:
            return CategoricalDistribution(self.choices)
        return self.numerical

    @property
    def numerical(self) -> FloatDistribution | IntDistribution:
        """Its range for those who know numbers only, to whom a choice is its place."""
        if self.scale == "log2":
            return IntDistribution(round(math.log2(self.low)), round(math.log2(self.high)))
        if self.integer or self.choices:
            return IntDistribution(round(self.low), round(self.high))
        return FloatDistribution(self.low, self.high, log=self.scale == "log", step=self.step)

    def suggest(self, trial: Trial) -> None:
        """Let a trial have this parameter, by the value that it was queued with."""
        wanted = self.distribution
        if isinstance(wanted, CategoricalDistribution):
            trial.suggest_categorical(self.parameter, wanted.choices)
        elif isinstance(wanted, IntDistribution):
            trial.suggest_int(self.parameter, wanted.low, wanted.high)
        else:
            trial.suggest_float(self.parameter, wanted.low, wanted.high, log=wanted.log, step=wanted.step)

    def encode(self, value: Value) -> Value:
        """What Optuna calls `value`."""
        return round(math.log2(float(value))) if self.scale == "log2" else value

    def decode(self, value: Value) -> Value:
        """The inverse of `encode`, rounded to what a setting holds."""
        return 2 ** round(float(value)) if self.scale == "log2" else self.rounded(value)

    def rounded(self, value: Value) -> Value:
        """The nearest value of this dimension that can be typed; the first choice for one that is not among them."""
        if self.choices:
            return value if value in self.choices else self.choices[0]
        number = float(value)
        if self.scale == "log2":
            typed: Number = 2 ** round(math.log2(number))
        elif self.integer:
            typed = round(number)
        elif self.step is not None:
            typed = round(self.low + round((number - self.low) / self.step) * self.step, DECIMALS)
        elif self.scale == "log":
            typed = float(f"{number:.{DIGITS}g}")
        else:
            typed = round(number, DECIMALS)
        return min(max(typed, self.low), self.high)

    def at(self, fraction: float) -> Value:
        """The value at `fraction` of the way from low to high, on its scale; `fraction` in `[0, 1)`."""
        if self.discrete:
            values = self.every()
            return values[min(len(values) - 1, int(fraction * len(values)))]
        if self.scale == "log":
            return self.rounded(math.exp(math.log(self.low) + fraction * math.log(self.high / self.low)))
        return self.rounded(self.low + fraction * (self.high - self.low))

    def fraction(self, value: Value) -> float:
        """Where `value` lies between low and high on this scale: the inverse of `at`."""
        if self.discrete:
            values = self.every()
            return (values.index(self.rounded(value)) + 0.5) / len(values)
        number = float(value)
        if self.scale == "log":
            return math.log(number / self.low) / math.log(self.high / self.low)
        return (number - self.low) / (self.high - self.low)

    def count(self) -> int | None:
        """How many values it has; None where it is continuous."""
        return len(self.every()) if self.discrete else None

    def every(self) -> list[Value]:
        """All values of a dimension that is not continuous."""
        if self.choices:
            return list(self.choices)
        if self.step is not None:
            steps = math.floor((self.high - self.low) / self.step + 1e-6)
            return [round(self.low + number * self.step, DECIMALS) for number in range(steps + 1)]
        if self.scale == "log2":
            return list(powers_of_two(self.low, self.high))
        return list(range(round(self.low), round(self.high) + 1))

    def levels(self) -> list[Value]:
        """The values that a grid visits: all names and sizes, or a few values from end to end."""
        if self.choices:
            return list(self.choices)
        return sorted({self.at(min(step / (GRID_LEVELS - 1), math.nextafter(1, 0))) for step in range(GRID_LEVELS)})

    @property
    def typed(self) -> str:
        """The dimension as `make_space` reads it: `0.2..0.8`, `32,64,128`, `nearest,gptq`."""
        if self.lists:
            return ",".join(map(value_text, self.every()))
        return f"{bound_text(self.low)}..{bound_text(self.high)}"

    def __str__(self) -> str:
        return f"{self.typed} (log)" if self.scale == "log" else self.typed


def _dimension(parameter: Parameter) -> Dimension:
    search = parameter.search
    assert search is not None
    if isinstance(search, Choices):
        return chosen_among(parameter.name, search.values)
    whole = parameter.type is int
    return Dimension(
        name=parameter.name, low=search.low, high=search.high, scale=search.scale, integer=whole, step=search.step
    )


def chosen_among(name: str, values: Sequence[Value]) -> Dimension:
    """The dimension of a parameter whose values are names or truths."""
    choices = tuple(value for value in values if isinstance(value, str | bool))
    return Dimension(name=name, low=0, high=len(values) - 1, choices=choices)


DIMENSIONS = {name: _dimension(PARAMETERS[name]) for name in SEARCHED}
"""Whatever can be searched, in its default range; a study searches what its settings read."""


def powers_of_two(low: float, high: float) -> list[int]:
    """The powers of two from low to high, both included where they are some."""
    return [2**power for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
