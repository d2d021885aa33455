"""What a person gives of a hyperparameter: a value, a range, several values.

Responsible for reading it, from flags and from files, into a value that is fixed or a dimension that is searched.
"""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpo.space.dimension import DECIMALS, DIMENSIONS, Dimension, Number, Value, chosen_among
from objectives.errors import InputError
from quant.parameters import LARGEST, LARGEST_COUNT, PARAMETERS, SMALLEST, Choices, bound_text, value_text

SYNTAX = "write 0.3 to fix it, 0.2..0.8 for a range, 32,64 for sizes"
CHOICES = tuple(name for name in DIMENSIONS if isinstance(PARAMETERS[name].search, Choices))
"""What has names or truths for values: a study searches it where several are given, and fixes it elsewhere."""


def read_space_file(path: Path) -> dict[str, object]:
    """The hyperparameters of a TOML file, for `make_space`.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"space file {path} cannot be read: {' '.join(str(error).split())}") from error


def parse(dimension: Dimension, value: object) -> Dimension | Value:
    """A value that is fixed, or what is left of `dimension`.

    Raises:
        InputError: If it cannot be read, or is outside what is possible.
    """
    name, text = dimension.name, ",".join(map(str, value)) if isinstance(value, list) else str(value)
    if dimension.choices:
        return _chosen(dimension, text)
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
        return _listed(dimension, [number for number in narrowed.every() if not isinstance(number, str)])
    return narrowed if narrowed.low < narrowed.high else parse(dimension, numbers[0])


def _chosen(dimension: Dimension, text: str) -> Dimension | Value:
    """A choice, or several of them as a dimension, in the order of the table."""
    parameter = PARAMETERS[dimension.name]
    legal = parameter.choices or ((True, False) if parameter.type is bool else dimension.choices)
    by_word = {value_text(value): value for value in legal}
    words = [word.strip().lower() for word in text.split(",")]
    unknown = [word for word in words if word not in by_word]
    if unknown:
        raise InputError(f"{dimension.name} {', '.join(unknown)} is none of {', '.join(by_word)}")
    return several(dimension.name, [value for word, value in by_word.items() if word in words])


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


def several(name: str, values: Sequence[Value]) -> Dimension | Value:
    """Values of a dimension that can be counted, as a dimension; a single one as it is."""
    if name not in CHOICES:
        return _listed(DIMENSIONS[name], [value for value in values if not isinstance(value, str)])
    return values[0] if len(values) == 1 else chosen_among(name, values)


def _listed(dimension: Dimension, values: Sequence[Number]) -> Dimension | Value:
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
        narrowed = replace(dimension, low=values[0], high=values[-1], step=step)
        if narrowed.every() == list(values):
            return narrowed
    listed = ", ".join(f"{value:g}" for value in values) or "nothing"
    raise InputError(f"{dimension.name} {listed}: values that are searched are {rule}")
