"""A plan says which setting quantizes which Linear, and is stored and read back as it was."""

import json
from dataclasses import replace

import pytest

from quant.errors import QuantizationError
from quant.plan import Plan
from quant.setting import Setting
from storage.typed_json import decode, encode

COARSE, FINE = Setting(method="rtn", group_size=64, n_calib=16), Setting(method="rtn", group_size=32, n_calib=32)


def test_a_uniform_plan_has_one_setting_for_every_linear() -> None:
    """Whatever the Linears are called."""
    plan = Plan.uniform(COARSE)
    assert plan.setting_for("model.layers.0.mlp.up_proj") is COARSE
    assert (plan.only, plan.is_uniform, plan.settings, plan.n_calib) == (COARSE, True, (COARSE,), 16)
    assert plan.label() == COARSE.label()
    assert plan == Plan.uniform(COARSE)


def test_a_linear_that_is_named_has_its_own_setting() -> None:
    """All others have that of the others; the most samples are those that any setting needs."""
    plan = Plan(named={"a": FINE}, others=COARSE)
    assert (plan.setting_for("a"), plan.setting_for("b")) == (FINE, COARSE)
    assert (plan.only, plan.is_uniform, plan.settings, plan.n_calib) == (None, False, (COARSE, FINE), 32)


def test_naming_every_linear_alike_is_uniform() -> None:
    """It does not matter how it was said."""
    plan = Plan(named={"a": FINE, "b": Setting(**FINE.as_dict())})
    assert plan.only == FINE
    with pytest.raises(QuantizationError, match="the plan has no setting for c; name it"):
        plan.setting_for("c")


def test_a_plan_without_settings_is_refused() -> None:
    """There would be nothing to do."""
    with pytest.raises(QuantizationError, match="at least one setting"):
        Plan()


@pytest.mark.parametrize("plan", [Plan.uniform(FINE), Plan(named={"a": FINE}), Plan(named={"a": FINE}, others=COARSE)])
def test_a_plan_is_read_back_as_it_was_stored(plan: Plan) -> None:
    """As JSON."""
    assert decode(Plan, json.loads(json.dumps(encode(plan))), "a plan") == plan


def test_a_plan_of_several_settings_names_each_recipe_once() -> None:
    """With all that weights are stored as, fewest bits first."""
    recipe = Setting(method="gw-awq", n_grid=7, group_size=64)
    settings = [replace(recipe, bits=16), replace(recipe, bits=8), recipe, replace(recipe, group_size=32)]
    plan = Plan(named=dict(zip("abcd", settings, strict=True)))
    assert plan.label() == "gw-awq n_grid=7 (4 bit g64, 4 bit g32, 8 bit g64); 16 bit"
    rows = Setting(method="rtn-channel", bits=8, symmetric=False)
    assert Plan(named={"a": COARSE, "b": rows}).label() == "rtn (4 bit g64); rtn-channel (8 bit per row asym)"


def test_what_is_left_in_16_bit_needs_no_calibration() -> None:
    """Only sizes that something reads count."""
    plan = Plan(named={"a": replace(FINE, bits=16)}, others=COARSE)
    assert (plan.calibration_sizes, plan.n_calib) == ([16], 16)
    assert Plan.uniform(replace(FINE, bits=16)).n_calib == 1
