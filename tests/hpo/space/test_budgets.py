"""Spaces of plans: one budget is fixed, several are steps, and group sizes are the budget's own."""

import pytest

from hpo.space.budgets import budgets_between
from hpo.space.space import Space, make_space
from quant.errors import QuantizationError
from quant.plan import Plan
from quant.setting import Setting
from storage.typed_json import decode, encode

SPACE = make_space(Setting(method="gw-awq"), {})


@pytest.mark.parametrize(
    ("low", "high", "first", "count"),
    [(4.2, 5.0, 4.2, 9), (4.1, 5.0, 4.1, 10), (4.25, 4.5, 4.25, 11), (4.2, 4.217, 4.201, 9), (4.2, 4.203, 4.2, 4)],
)
def test_a_front_has_about_ten_even_budgets_and_its_upper_end(
    low: float, high: float, first: float, count: int
) -> None:
    """All in thousandths; the lower end moves up where they do not divide the front."""
    every = budgets_between(low, high).every()
    assert every[0] == first
    assert every[-1] == high
    assert len(every) == count


def test_a_budget_is_read_instead_of_the_group_size() -> None:
    """It is part of every setting, and of its label."""
    space = SPACE.under(4.25, 4.25)
    assert not space.is_front
    assert space.reads == SPACE.reads - {"group_size"} | {"bit_budget"}
    setting = space.project(Setting(method="gw-awq", group_size=32))
    assert (setting.bit_budget, setting.recipe.bit_budget) == (4.25, 0)
    assert setting.canonical().group_size == Setting().group_size
    assert setting.label().endswith("bit_budget=4.25")
    assert decode(Space, encode(space), "space") == space


def test_a_front_is_a_space_with_budgets_as_a_dimension() -> None:
    """It is stored and read back, and settings keep their budget on the way through Optuna's parameters."""
    space = SPACE.under(4.2, 5.0)
    assert space.is_front
    assert "group_size" not in space.reads
    assert space.numbers("bit_budget")[0] == 4.2
    assert decode(Space, encode(space), "space") == space
    setting = space.at([0.5] * len(space.dimensions))
    assert space.setting(space.params(setting)) == setting
    assert setting.bit_budget == 4.6


def test_a_setting_that_stands_for_a_plan_cannot_quantize_a_linear() -> None:
    """Its bits are allocated first."""
    with pytest.raises(QuantizationError, match="a setting with a bit budget stands for a plan; allocate its bits"):
        Plan.uniform(Setting(bit_budget=4.5))
