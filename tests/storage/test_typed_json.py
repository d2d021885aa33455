"""Dataclasses as JSON: what is written is read again, and what is of another type is refused by its name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import StoredValueError
from storage.typed_json import decode, decode_known, encode


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str
    weight: float
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Whole:
    count: int
    parts: tuple[Part, ...]
    best: Part | None = None
    sizes: Mapping[str, float] = field(default_factory=dict)
    running: Mapping[int, float] = field(default_factory=dict)
    value: bool | int | str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


NUMBERS = st.floats(allow_nan=False)
PARTS = st.builds(Part, name=st.text(), weight=NUMBERS | st.integers(), kind=st.sampled_from(["a", "b"]))
WHOLES = st.builds(
    Whole,
    count=st.integers(),
    parts=st.lists(PARTS, max_size=3).map(tuple),
    best=st.none() | PARTS,
    sizes=st.dictionaries(st.text(), NUMBERS, max_size=3),
    running=st.dictionaries(st.integers(), NUMBERS, max_size=3),
    value=st.none() | st.booleans() | st.integers() | st.text(),
    about=st.just({"any": [1, {"thing": None}]}),
)


@given(WHOLES)
def test_what_is_written_is_read_again(whole: Whole) -> None:
    """Through JSON's text, nested values and whole numbers included."""
    assert decode(Whole, json.loads(json.dumps(encode(whole))), "a file") == whole


def test_whole_numbers_stay_whole_where_a_float_is_declared() -> None:
    """So that a key made of the written text stays the same."""
    found = decode(Part, {"name": "x", "weight": 2}, "x")
    assert json.dumps(encode(found)) == '{"name": "x", "weight": 2, "kind": "a"}'


PART = {"name": "x", "weight": 1.5}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"count": "3", "parts": []}, "a file: count is '3', not a whole number"),
        ({"count": True, "parts": []}, "a file: count is True, not a whole number"),
        ({"count": 3.0, "parts": []}, "a file: count is 3.0, not a whole number"),
        ({"count": 3, "parts": [PART, {**PART, "weight": "y"}]}, "a file: parts[1].weight is 'y', not a number"),
        ({"count": 3, "parts": [PART, 7]}, "a file: parts[1] is 7, not an object"),
        ({"count": 3, "parts": [{"name": "x"}]}, "a file: parts[0] lacks weight"),
        ({"count": 3, "parts": [{**PART, "kind": "c"}]}, "a file: parts[0].kind is 'c', none of a, b"),
        ({"count": 3, "parts": [], "best": {**PART, "name": None}}, "a file: best.name is null, not text"),
        ({"count": 3, "parts": [], "sizes": {"k": "v"}}, "a file: sizes.k is 'v', not a number"),
        ({"count": 3, "parts": [], "sizes": [1]}, "a file: sizes is [1], not an object"),
        ({"count": 3, "parts": "none"}, "a file: parts is 'none', not a list"),
        (
            {"count": 3, "parts": [], "value": 1.5},
            "a file: value is 1.5, not true or false or a whole number or text or null",
        ),
        ({"count": 3, "parts": [], "more": 1}, "a file has the unknown field 'more'"),
        ({"parts": []}, "a file lacks count"),
        ([1], "a file is [1], not an object"),
    ],
)
def test_a_value_of_another_type_is_named_in_one_line(stored: Any, message: str) -> None:
    """With the way to it, what was found, and what belongs there."""
    with pytest.raises(StoredValueError) as caught:
        decode(Whole, stored, "a file")
    assert str(caught.value) == message


def test_fields_of_others_can_be_left_out() -> None:
    """Where several programs write into one object."""
    assert decode_known(Part, {**PART, "theirs": object()}, "x") == Part(name="x", weight=1.5)


def test_what_json_has_not_is_refused() -> None:
    """A mistake of the program's, so it has no one-line error."""
    with pytest.raises(TypeError, match="object has no JSON form"):
        encode({"x": object()})
    with pytest.raises(TypeError, match="has no JSON form"):
        decode(set, [], "x")
