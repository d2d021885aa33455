"""Names of recipes: a method with its ingredients, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.errors import QuantizationError
from quant.methods import METHODS
from quant.recipes import recipe_fields, recipe_name, recipe_steps
from quant.setting import Setting

SETTINGS = st.builds(
    Setting,
    method=st.sampled_from(sorted(METHODS)),
    full_range=st.booleans(),
    range_search=st.sampled_from(["none", "diagonal", "block"]),
    rounding=st.sampled_from(["nearest", "gptq"]),
)


@given(SETTINGS)
def test_the_name_of_a_recipe_says_its_method_and_its_ingredients(setting: Setting) -> None:
    """Read again it is the same setting."""
    assert Setting(**recipe_fields({"method": recipe_name(setting)})) == setting


def test_a_method_alone_is_a_recipe_without_ingredients() -> None:
    """Named methods keep their meaning, and other fields stay as they were given."""
    assert recipe_fields({"method": "gw-awq", "n_grid": 5}) == {"method": "gw-awq", "n_grid": 5}
    assert recipe_fields({"n_grid": 5}) == {"n_grid": 5}
    assert Setting(method="gw-awq").label() == "gw-awq n_grid=20"
    both = Setting(method="gw-awq", range_search="diagonal", rounding="gptq", damping=0.1)
    assert both.label() == "gw-awq+range+gptq n_grid=20 damping=0.1"
    assert recipe_name(Setting(method="rtn", symmetric=False, full_range=True)) == "rtn"


@given(SETTINGS)
def test_steps_lead_from_nearest_rounding_to_the_setting(setting: Setting) -> None:
    """Each changes what the one before it does, by what its name says."""
    names, steps = zip(*recipe_steps(setting), strict=True)
    assert names[0] in ("rtn", "rtn-channel")
    assert recipe_name(steps[0]) == names[0]
    assert steps[-1].canonical() == setting.canonical()
    assert len({step.canonical() for step in steps}) == len(steps)
    assert [recipe_name(step) for step in steps[1:]] == [
        recipe_name(steps[-1]).split("+")[0] + "".join(names[1 if setting.method == names[0] else 2 : place + 1])
        for place in range(1, len(names))
    ]


def test_every_ingredient_of_a_recipe_is_a_step() -> None:
    """In the order in which a name has them."""
    recipe = Setting(**recipe_fields({"method": "gw-awq+full+block+alpha+gptq"}))
    assert [name for name, _ in recipe_steps(recipe)] == ["rtn", "gw-awq", "+full", "+block", "+alpha", "+gptq"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"method": "gw-awq+clip"},
            "ingredient 'clip' of gw-awq.clip is unknown; choose some of full,",
        ),
        ({"method": "rtn+range+block"}, "means --range-search block, and diagonal is asked for, too"),
        ({"method": "gw-awq+full", "symmetric": False}, "full of gw-awq.full does nothing on codes with zero points"),
        ({"method": "rtn+gptq", "rounding": "nearest"}, "means --rounding gptq, and nearest is asked for, too"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(values: dict[str, object], message: str) -> None:
    """In one line that says what to leave out, or what there is."""
    with pytest.raises(QuantizationError, match=message):
        recipe_fields(values)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("gw-awq+alpha", "add +range"), ("gw-awq+alpha+gptq", "add +range"), ("rtn+prefix", "add +gptq")],
)
def test_an_ingredient_that_would_do_nothing_is_refused(name: str, remedy: str) -> None:
    """The line says what it is missing; a field may be what it needs."""
    with pytest.raises(QuantizationError, match="does nothing without") as caught:
        recipe_fields({"method": name})
    assert remedy in str(caught.value)
    fields = recipe_fields({"method": name, "rounding": "gptq", "range_search": "block"})
    assert fields["method"] == name.split("+")[0]
