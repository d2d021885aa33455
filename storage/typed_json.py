"""Frozen values as JSON and back, checked by the types that their classes declare.

Responsible for the one way in which dataclasses are stored and printed: `encode` and `decode` are inverse for numbers,
names, truths, None, dataclasses, mappings and tuples of them. Knows nothing of what it carries. A whole number may
stand where a float is declared and stays one, so that what is written again is what was read.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from storage.errors import StoredValueError

T = TypeVar("T")
Decoder = Callable[[Any], Any]
WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number", NoneType: "null"}
LONGEST = 60


class _Mismatch(Exception):
    """A value is not of the declared type; `path` leads to it."""

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(problem)
        self.problem, self.path = problem, path

    def below(self, step: str) -> "_Mismatch":
        """Return the same, seen from what holds the value under `step`."""
        return _Mismatch(self.problem, f"{step}{self.path}")


def encode(value: object) -> Any:
    """Convert a value to the types that JSON has: dataclasses and mappings as objects, tuples as arrays.

    A dataclass with fields that follow from the others may leave those out by a method `as_json` of its own.

    Raises:
        TypeError: If something in it has no JSON form.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if hasattr(value, "as_json"):
        return value.as_json()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [encode(part) for part in value]
    # Those of other libraries.
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def decode(kind: type[T], stored: object, where: str) -> T:
    """Decode what `encode` gave.

    Args:
        kind: The dataclass, or another type, that is expected.
        stored: What JSON held.
        where: What it was read from, for the message: `study 'mine', reference 2`.

    Raises:
        StoredValueError: Naming the field whose value is missing, unknown or of another type.
    """
    expected: Any = kind
    try:
        value: T = _decoder(expected)(stored)
    except _Mismatch as error:
        place = f"{where}: {error.path.lstrip('.')}" if error.path else where
        raise StoredValueError(f"{place} {error.problem}") from None
    return value


def decode_known(kind: type[T], stored: Mapping[str, object], where: str) -> T:
    """Decode an object that others write into as well: keys that are no fields of `kind` are left out.

    Raises:
        StoredValueError: As `decode`.
    """
    expected: Any = kind
    names = _hints(expected)
    return decode(kind, {name: value for name, value in stored.items() if name in names}, where)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _decoder(kind: Any) -> Decoder:
    """Make what checks and builds values of one type; once, since studies have thousands of trials."""
    if kind is Any or kind is object:
        return _as_it_is
    if kind in WORDS:
        return _scalar(kind)
    if is_dataclass(kind):
        return _instance(kind)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _choice(parts)
    if origin in (Union, UnionType):
        return _either(parts)
    if origin is tuple and len(parts) == 2 and parts[1] is Ellipsis:
        return _sequence(_decoder(parts[0]))
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(*parts)
    raise TypeError(f"{kind} has no JSON form")


def _as_it_is(stored: Any) -> Any:
    return stored


def _scalar(kind: type) -> Decoder:
    allowed = (int, float) if kind is float else kind

    def decoded(stored: Any) -> Any:
        # A truth is a whole number to Python.
        if not isinstance(stored, allowed) or (isinstance(stored, bool) and kind is not bool):
            raise _Mismatch(_is_not(stored, kind))
        return stored

    return decoded


def _instance(kind: Any) -> Decoder:
    hints = _hints(kind)
    decoders = {field.name: _decoder(hints[field.name]) for field in fields(kind)}
    needed = [field.name for field in fields(kind) if not _has_default(field)]

    def decoded(stored: Any) -> Any:
        if not isinstance(stored, Mapping):
            raise _Mismatch(_is_not(stored, kind))
        values = {}
        for name, value in stored.items():
            if name not in decoders:
                raise _Mismatch(f"has the unknown field {name!r}")
            try:
                values[name] = decoders[name](value)
            except _Mismatch as error:
                raise error.below(f".{name}") from None
        missing = [name for name in needed if name not in values]
        if missing:
            raise _Mismatch(f"lacks {', '.join(missing)}")
        try:
            return kind(**values)
        except ValueError as error:
            raise _Mismatch(f"cannot be used: {error}") from None

    return decoded


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _choice(allowed: tuple[Any, ...]) -> Decoder:
    def decoded(stored: Any) -> Any:
        if stored not in allowed:
            raise _Mismatch(f"is {_short(stored)}, none of {', '.join(map(str, allowed))}")
        return stored

    return decoded


def _either(kinds: tuple[Any, ...]) -> Decoder:
    others = [kind for kind in kinds if kind is not NoneType]
    optional, decoders = NoneType in kinds, [_decoder(kind) for kind in others]

    def decoded(stored: Any) -> Any:
        if stored is None and optional:
            return None
        if len(decoders) == 1:
            return decoders[0](stored)
        for decoder in decoders:
            try:
                return decoder(stored)
            except _Mismatch:
                continue
        raise _Mismatch(_is_not(stored, *kinds))

    return decoded


def _sequence(decoder: Decoder) -> Decoder:
    def decoded(stored: Any) -> Any:
        if not isinstance(stored, list | tuple):
            raise _Mismatch(f"is {_short(stored)}, not a list")
        values = []
        for place, value in enumerate(stored):
            try:
                values.append(decoder(value))
            except _Mismatch as error:
                raise error.below(f"[{place}]") from None
        return tuple(values)

    return decoded


def _mapping(keys: type, kind: Any) -> Decoder:
    decoder = _decoder(kind)

    def decoded(stored: Any) -> Any:
        if not isinstance(stored, Mapping):
            raise _Mismatch(f"is {_short(stored)}, not an object")
        values = {}
        for key, value in stored.items():
            try:
                values[keys(key)] = decoder(value)
            except _Mismatch as error:
                raise error.below(f".{key}") from None
        return values

    return decoded


def _is_not(stored: object, *kinds: Any) -> str:
    return f"is {_short(stored)}, not {' or '.join(WORDS.get(kind, 'an object') for kind in kinds)}"


def _short(stored: object) -> str:
    text = "null" if stored is None else repr(stored)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
