"""The search space: which fields of a `Setting` a study varies, and between which bounds.

Responsible for the space of each method (docs/methods.md), for narrowing it, and for the ways to and from Optuna's
parameters and what is stored. May assume nothing about the model: sizes that do not suit it, or for which there is no
text, are taken out by `limited`.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.distributions import BaseDistribution

from hpo.space.budgets import budgets_between
from hpo.space.dimension import DIMENSIONS, Dimension, Number, Value
from hpo.space.given import CHOICES, parse, several
from objectives.errors import InputError
from quant.parameters import PARAMETERS, value_text
from quant.setting import Setting, unread_numbers
from storage.typed_json import encode

INGREDIENTS: Mapping[str, object] = {name: list(DIMENSIONS[name].choices) for name in CHOICES}
"""What is given to the space that `optimize` searches unless it is told to search the original one."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a study searches, and what it holds fixed.

    Attributes:
        base: The fixed part of every setting; what varies or is not read by its method is at its default there.
        dimensions: What varies, in a fixed order.
    """

    base: Setting
    dimensions: tuple[Dimension, ...]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's view."""
        return {dimension.parameter: dimension.distribution for dimension in self.dimensions}

    @property
    def reads(self) -> frozenset[str]:
        """Every field that some setting of the space reads."""
        numbers = {dimension.name: dimension.low for dimension in self.dimensions if not dimension.choices}
        # A base holds nothing that varies, and whether there is a budget decides what is read.
        base = replace(self.base, **numbers)  # type: ignore[arg-type]
        return _read(_combinations(base, [dimension for dimension in self.dimensions if dimension.choices]))

    @property
    def is_front(self) -> bool:
        """Whether the size varies by budgets: then plans of all sizes are sought, each as good as it can be."""
        return any(dimension.name == "bit_budget" for dimension in self.dimensions)

    def under(self, low: float, high: float) -> "Space":
        """The space of plans instead of uniform settings, at a budget or, where they differ, at several between two.

        Args:
            low: Bits per weight.
            high: Bits per weight, not below `low`.
        """
        usual = PARAMETERS["group_size"].default
        base = replace(self.base, group_size=usual, bit_budget=low if low == high else 0.0)  # type: ignore[arg-type]
        others = tuple(dimension for dimension in self.dimensions if dimension.name != "group_size")
        space = replace(self, base=base, dimensions=others)
        return space if low == high else space._with("bit_budget", budgets_between(low, high))

    def setting(self, params: Mapping[str, Value]) -> Setting:
        """The setting that Optuna's parameters stand for."""
        values = {dimension.name: dimension.decode(params[dimension.parameter]) for dimension in self.dimensions}
        return replace(self.base, **values)  # type: ignore[arg-type]

    def params(self, setting: Setting) -> dict[str, Value]:
        """Optuna's parameters of a setting, the inverse of `setting`."""
        return {
            dimension.parameter: dimension.encode(getattr(setting, dimension.name)) for dimension in self.dimensions
        }

    def project(self, setting: Setting) -> Setting:
        """The nearest setting inside the space."""
        return self._settled({dimension.name: getattr(setting, dimension.name) for dimension in self.dimensions})

    def at(self, fractions: Sequence[float]) -> Setting:
        """The setting at a point of the unit cube, one coordinate in `[0, 1)` per dimension."""
        return self._settled(
            {dimension.name: dimension.at(x) for dimension, x in zip(self.dimensions, fractions, strict=True)}
        )

    def fractions(self, setting: Setting) -> list[float]:
        """Where a setting lies in the unit cube: the inverse of `at`, up to what the setting does not read."""
        return [dimension.fraction(getattr(setting, dimension.name)) for dimension in self.dimensions]

    def grid(self) -> list[Setting]:
        """Every combination of the dimensions' levels, once."""
        return list(self._combined([dimension.levels() for dimension in self.dimensions]))

    def size(self) -> int | None:
        """How many settings there are; None where a dimension is continuous."""
        sizes = [dimension.count() for dimension in self.dimensions]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def every(self) -> Iterator[Setting]:
        """All settings of a space without continuous dimensions, each once."""
        return self._combined([dimension.every() for dimension in self.dimensions])

    def sizes(self, name: str) -> list[int]:
        """The values that settings of this space take for `group_size` or `n_calib`, ascending."""
        return [round(value) for value in self.numbers(name)]

    def numbers(self, name: str) -> list[Number]:
        """The values that settings of this space take for a number that is fixed or can be counted, ascending."""
        return [value for value in self.values(name) if not isinstance(value, str)]

    def values(self, name: str) -> list[Value]:
        """The values that settings of this space take for a field that is fixed or can be counted, in their order."""
        for dimension in self.dimensions:
            if dimension.name == name:
                return dimension.every()
        return [getattr(self.base, name)]

    def limited(self, name: str, allowed: Iterable[Value], reason: str) -> tuple["Space", str | None]:
        """The space with only the `allowed` values of a dimension that can be counted, and a notice of what it lost.

        Raises:
            InputError: If none is left, or what is left has a gap.
        """
        before, allowed = self.values(name), list(allowed)
        kept = [value for value in before if value in allowed]
        if kept == before or name not in self.reads:
            return self, None
        if not kept:
            values = ", ".join(map(value_text, before))
            raise InputError(f"{name} {values}: {reason}; give other values with {PARAMETERS[name].flag}")
        dropped = ", ".join(value_text(value) for value in before if value not in kept)
        return self._with(name, several(name, kept)), f"{name} {dropped} left out: {reason}"

    @property
    def fixed(self) -> dict[str, object]:
        """The values of everything that settings read and that does not vary."""
        varied = {dimension.name for dimension in self.dimensions}
        read = self.reads - varied
        return {name: value for name, value in self.base.as_dict().items() if name in read}

    @property
    def parts(self) -> dict[str, object]:
        """What the space consists of: the values that are fixed and the dimensions that are searched, by field."""
        return {**self.fixed, **{dimension.name: dimension for dimension in self.dimensions}}

    def as_json(self) -> dict[str, Any]:
        """What is stored: of the base only what is fixed, since everything else has its default."""
        return {"base": self.fixed, "dimensions": [encode(dimension) for dimension in self.dimensions]}

    def _settled(self, values: Mapping[str, Value]) -> Setting:
        """The setting of these values, each rounded; what it does not read is as near to its default as can be."""
        rounded = {dimension.name: dimension.rounded(values[dimension.name]) for dimension in self.dimensions}
        setting = replace(self.base, **rounded)  # type: ignore[arg-type]
        unread = {
            dimension.name: dimension.rounded(PARAMETERS[dimension.name].default)  # type: ignore[arg-type]
            for dimension in self.dimensions
            if dimension.name not in setting.reads
        }
        # Checked again only where something changed: proposals look at hundreds of settings.
        return replace(setting, **unread) if unread else setting  # type: ignore[arg-type]

    def _combined(self, values: Sequence[Sequence[Value]]) -> Iterator[Setting]:
        names, seen = [dimension.name for dimension in self.dimensions], set()
        for combination in itertools.product(*values):
            setting = self._settled(dict(zip(names, combination, strict=True)))
            if setting not in seen:
                seen.add(setting)
                yield setting

    def _with(self, name: str, chosen: Dimension | Value) -> "Space":
        others = tuple(dimension for dimension in self.dimensions if dimension.name != name)
        if not isinstance(chosen, Dimension):
            return replace(self, base=replace(self.base, **{name: chosen}), dimensions=others)  # type: ignore[arg-type]
        order = list(DIMENSIONS)
        dimensions = sorted((*others, chosen), key=lambda dimension: order.index(dimension.name))
        return replace(self, dimensions=tuple(dimensions))


def make_space(base: Setting, given: Mapping[str, object]) -> Space:
    """Make a space of everything that its settings read, in its default range, narrowed by what was given.

    Args:
        base: Method, grid and scale sharing; and the values of whatever is fixed.
        given: By name of the hyperparameter: a number, or text of the form `0.3`, `0.2..0.8`, `32,64` or
            `nearest,gptq`. Names and truths are fixed as `base` has them unless several are given.

    Raises:
        InputError: Naming every unknown name and every value that cannot be read or is outside what is possible.
    """
    problems = [
        f"{name!r} is no hyperparameter; there are {', '.join(DIMENSIONS)}" for name in given if name not in DIMENSIONS
    ]
    parts: dict[str, Dimension | Value] = {}
    for name, value in given.items():
        if name in DIMENSIONS:
            try:
                parts[name] = parse(DIMENSIONS[name], value)
            except ValueError as error:
                problems.append(str(error))
    choices = {name: part for name, part in parts.items() if name in CHOICES}
    searched = {name: part for name, part in choices.items() if isinstance(part, Dimension)}
    base = replace(base, **{name: part for name, part in choices.items() if name not in searched})  # type: ignore[arg-type]
    settings = _combinations(base, list(searched.values()))
    read = _read(settings)
    problems += unread_numbers(settings, parts)
    if base.is_unquantized:
        problems = [f"bits {base.bits} leave every weight as it is, and nothing to search; give fewer with --bits"]
    if problems:
        raise InputError("; ".join(problems))
    varied = {
        name: parts.get(name, dimension)
        for name, dimension in DIMENSIONS.items()
        if name in read and (name not in CHOICES or name in searched)
    }
    unread = {name: PARAMETERS[name].default for name in PARAMETERS if name not in read or name in varied}
    values = {name: part for name, part in varied.items() if not isinstance(part, Dimension)}
    return Space(
        base=replace(base, **{**unread, **values}),  # type: ignore[arg-type]
        dimensions=tuple(part for part in varied.values() if isinstance(part, Dimension)),
    )


def _combinations(base: Setting, choices: Sequence[Dimension]) -> list[Setting]:
    """The settings that have these choices, and are like `base` otherwise."""
    combinations = itertools.product(*(choice.choices for choice in choices))
    names = [choice.name for choice in choices]
    return [replace(base, **dict(zip(names, values, strict=True))) for values in combinations]  # type: ignore[arg-type]


def _read(settings: Sequence[Setting]) -> frozenset[str]:
    """Everything that some of these settings read."""
    return frozenset().union(*(setting.reads for setting in settings))
