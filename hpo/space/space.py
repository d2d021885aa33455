"""The search space: which fields of a `Setting` a study varies, and between which bounds.

Responsible for the space of each method (docs/methods.md), for narrowing it, and for the ways to and from Optuna's
parameters and what is stored. May assume nothing about the model: sizes that do not suit it, or for which there is no
text, are taken out by `limited`.
"""

import itertools
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution

from hpo.space.dimension import DECIMALS, DIMENSIONS, Dimension, Number
from objectives.errors import InputError
from quant.parameters import LARGEST, LARGEST_COUNT, PARAMETERS, SMALLEST, bound_text
from quant.setting import Setting
from storage.typed_json import encode

SYNTAX = "write 0.3 to fix it, 0.2..0.8 for a range, 32,64 for sizes"


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

    def setting(self, params: Mapping[str, Number]) -> Setting:
        """The setting that Optuna's parameters stand for."""
        values = {dimension.name: dimension.decode(params[dimension.parameter]) for dimension in self.dimensions}
        return replace(self.base, **values)  # type: ignore[arg-type]

    def params(self, setting: Setting) -> dict[str, Number]:
        """Optuna's parameters of a setting, the inverse of `setting`."""
        return {
            dimension.parameter: dimension.encode(getattr(setting, dimension.name)) for dimension in self.dimensions
        }

    def project(self, setting: Setting) -> Setting:
        """The nearest setting inside the space."""
        values = {dimension.name: dimension.rounded(getattr(setting, dimension.name)) for dimension in self.dimensions}
        return replace(self.base, **values)  # type: ignore[arg-type]

    def at(self, fractions: Sequence[float]) -> Setting:
        """The setting at a point of the unit cube, one coordinate in `[0, 1)` per dimension."""
        values = {dimension.name: dimension.at(x) for dimension, x in zip(self.dimensions, fractions, strict=True)}
        return replace(self.base, **values)  # type: ignore[arg-type]

    def fractions(self, setting: Setting) -> list[float]:
        """Where a setting lies in the unit cube: the inverse of `at`."""
        return [dimension.fraction(getattr(setting, dimension.name)) for dimension in self.dimensions]

    def grid(self) -> list[Setting]:
        """Every combination of the dimensions' levels."""
        levels = [dimension.levels() for dimension in self.dimensions]
        names = [dimension.name for dimension in self.dimensions]
        combinations = itertools.product(*levels)
        return [replace(self.base, **dict(zip(names, values, strict=True))) for values in combinations]  # type: ignore[arg-type]

    def size(self) -> int | None:
        """How many settings there are; None where a dimension is continuous."""
        sizes = [dimension.count() for dimension in self.dimensions]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def every(self) -> Iterator[Setting]:
        """All settings of a space without continuous dimensions."""
        names = [dimension.name for dimension in self.dimensions]
        for values in itertools.product(*(dimension.every() for dimension in self.dimensions)):
            yield replace(self.base, **dict(zip(names, values, strict=True)))  # type: ignore[arg-type]

    def sizes(self, name: str) -> list[int]:
        """The values that settings of this space take for `group_size` or `n_calib`, ascending."""
        return [round(value) for value in self.values(name)]

    def values(self, name: str) -> list[Number]:
        """The values that settings of this space take for a field that is fixed or can be counted, ascending."""
        for dimension in self.dimensions:
            if dimension.name == name:
                return dimension.every()
        return [getattr(self.base, name)]

    def limited(self, name: str, allowed: Iterable[Number], reason: str) -> tuple["Space", str | None]:
        """The space with only the `allowed` values of a dimension that can be counted, and a notice of what it lost.

        Raises:
            InputError: If none is left, or what is left has a gap.
        """
        before = self.values(name)
        kept = sorted(set(before) & set(allowed))
        if kept == before or name not in self.base.reads:
            return self, None
        if not kept:
            raise InputError(
                f"{name} {', '.join(map(str, before))}: {reason}; give other values with {PARAMETERS[name].flag}"
            )
        dropped = [f"{value:g}" for value in before if value not in kept]
        notice = f"{name} {', '.join(dropped)} left out: {reason}"
        return self._with(name, _listed(DIMENSIONS[name], kept)), notice

    @property
    def fixed(self) -> dict[str, object]:
        """The values of everything that the method reads and that does not vary."""
        varied = {dimension.name for dimension in self.dimensions}
        return {name: value for name, value in self.base.read_values().items() if name not in varied}

    @property
    def parts(self) -> dict[str, object]:
        """What the space consists of: the values that are fixed and the dimensions that are searched, by field."""
        return {**self.fixed, **{dimension.name: dimension for dimension in self.dimensions}}

    def as_json(self) -> dict[str, Any]:
        """What is stored: of the base only what is fixed, since everything else has its default."""
        return {"base": self.fixed, "dimensions": [encode(dimension) for dimension in self.dimensions]}

    def _with(self, name: str, found: Dimension | Number) -> "Space":
        others = tuple(dimension for dimension in self.dimensions if dimension.name != name)
        if not isinstance(found, Dimension):
            return replace(self, base=replace(self.base, **{name: found}), dimensions=others)  # type: ignore[arg-type]
        order = list(DIMENSIONS)
        dimensions = sorted((*others, found), key=lambda dimension: order.index(dimension.name))
        return replace(self, dimensions=tuple(dimensions))


def make_space(base: Setting, given: Mapping[str, object]) -> Space:
    """Everything that `base`'s method reads in its default range, narrowed by what was given.

    Args:
        base: Method, grid and scale sharing; and the values of whatever is fixed.
        given: By name of the hyperparameter: a number, or text of the form `0.3`, `0.2..0.8` or `32,64`.

    Raises:
        InputError: Naming every unknown name and every value that cannot be read or is outside what is possible.
    """
    read = base.reads
    dimensions = tuple(dimension for name, dimension in DIMENSIONS.items() if name in read)
    usual = {dimension.name: PARAMETERS[dimension.name].default for dimension in dimensions}
    space = Space(base=replace(base.canonical(), **usual), dimensions=dimensions)  # type: ignore[arg-type]
    problems = []
    for name, value in given.items():
        if name not in DIMENSIONS:
            problems.append(f"{name!r} is no hyperparameter; there are {', '.join(DIMENSIONS)}")
            continue
        if name not in read:
            problems.append(f"{base.method} does not read {name}; leave {PARAMETERS[name].flag} out")
            continue
        try:
            space = space._with(name, _parse(DIMENSIONS[name], value))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise InputError("; ".join(problems))
    return space


def read_space_file(path: Path) -> dict[str, object]:
    """The hyperparameters of a TOML file, for `make_space`.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"space file {path} cannot be read: {' '.join(str(error).split())}") from error


def _parse(dimension: Dimension, value: object) -> Dimension | Number:
    name, text = dimension.name, ",".join(map(str, value)) if isinstance(value, list) else str(value)
    try:
        numbers: list[Number] = [float(part) for part in text.replace("..", ",").split(",")]
    except ValueError:
        raise InputError(f"{name} {text!r} cannot be read; {SYNTAX}") from None
    if dimension.integer and any(number != round(number) for number in numbers):
        raise InputError(f"{name} {text!r} is not whole; {SYNTAX}")
    _require_legal(dimension, numbers)
    if dimension.integer:
        numbers = [round(number) for number in numbers]
    if len(numbers) == 1:
        return numbers[0]
    if dimension.lists and ".." not in text:
        return _listed(dimension, sorted(set(numbers)))
    if ".." not in text or len(numbers) != 2:
        raise InputError(f"{name} {text!r} is neither a value nor a range; {SYNTAX}")
    narrowed = replace(dimension, low=numbers[0], high=numbers[1])
    if dimension.lists:
        return _listed(dimension, narrowed.every())
    return narrowed if narrowed.low < narrowed.high else _parse(dimension, numbers[0])


def _require_legal(dimension: Dimension, numbers: Sequence[float]) -> None:
    """The default range may be left on purpose, what a setting can hold at all may not.

    A setting may have values that a search cannot: infinite ones, and on a scale of logarithms those not above 0.
    """
    low, high = PARAMETERS[dimension.name].legal or (-math.inf, math.inf)
    low, high = (
        max(low, SMALLEST if dimension.scale == "log" else -LARGEST),
        min(high, LARGEST_COUNT if dimension.integer else LARGEST),
    )
    outside = [f"{number:g}" for number in numbers if not low <= number <= high]
    if outside:
        raise InputError(f"{dimension.name} {', '.join(outside)} is outside {bound_text(low)}..{bound_text(high)}")


def _listed(dimension: Dimension, values: Sequence[Number]) -> Dimension | Number:
    """Ascending values as a dimension, or as a fixed value when there is one.

    Raises:
        InputError: If they are not consecutive powers of two, or not evenly spaced where there are steps.
    """
    if len(values) == 1:
        return values[0]
    rule, step = "consecutive powers of two, such as 32,64,128", dimension.step
    if dimension.step is not None:
        rule, step = "evenly spaced in thousandths, such as 0.1,0.2,0.3", round(values[1] - values[0], DECIMALS)
    if values and step != 0:
        found = replace(dimension, low=values[0], high=values[-1], step=step)
        if found.every() == list(values):
            return found
    listed = ", ".join(f"{value:g}" for value in values) or "nothing"
    raise InputError(f"{dimension.name} {listed}: values that are searched are {rule}")
