"""JSON without what JSON has not."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.strict_json import json_text, plain

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4))
def test_a_strict_reader_gets_everything_but_what_is_not_finite(value: dict[str, object]) -> None:
    """NaN and Infinity become null; everything else comes back as it was."""
    text = json_text(value)
    found = json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
    assert found == plain(value)
    assert text.endswith("\n")


def test_numbers_of_other_libraries_are_numbers() -> None:
    """Not their descriptions."""
    value = {"a": np.float64(1.5), "b": np.int64(3), "c": [math.inf, -math.inf, math.nan], "d": (1, {2})}
    assert plain(value) == {"a": 1.5, "b": 3, "c": [None, None, None], "d": [1, [2]]}
