"""Ingredients on models of every layout: each changes weights, and lowers the loss that it is there for."""

from dataclasses import replace
from pathlib import Path

import pytest

from objectives.trial import quantized
from quant.plan import Plan
from quant.recipes import INGREDIENTS, recipe_fields
from quant.setting import Setting
from tests.objectives import tiny

METHOD = {"group_size": 32, "n_calib": 8, "n_grid": 5}


def setting(recipe: str) -> Setting:
    return Setting(**recipe_fields({**METHOD, "method": recipe}))


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_every_ingredient_changes_the_weights_and_lowers_their_loss(layout: str, tmp_path: Path) -> None:
    """None is an option that does nothing, on whatever the layout calls its Linears; none makes a Linear worse."""
    bench = tiny.bench(tiny.model(tiny.LAYOUTS[layout]()), tmp_path / "home")
    weights, losses = {}, {}
    for recipe in ("gw-awq", *(f"gw-awq+{name}" for name in INGREDIENTS if name != "alpha"), "gw-awq+range+alpha"):
        with quantized(bench, Plan.uniform(setting(recipe))) as model:
            weights[recipe] = {
                linear.name: linear.weight().clone() for block in bench.blocks for linear in block.linears
            }
            losses[recipe] = sum(layer.final_loss for layer in model.layers)
            assert all(layer.final_loss <= layer.loss for layer in model.layers)
    for recipe, own in weights.items():
        basis = "gw-awq+range" if recipe.endswith("alpha") else "gw-awq"
        if recipe not in (basis, "gw-awq"):
            moved = [name for name, weight in own.items() if not weight.equal(weights[basis][name])]
            assert moved, recipe
            assert recipe.endswith(("alpha", "full")) or losses[recipe] < losses["gw-awq"], recipe


def test_a_full_range_uses_both_signs_of_scales(tmp_path: Path) -> None:
    """And the codes are those that are stored."""
    bench = tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path / "home")
    for wanted, signs in ((setting("gw-awq"), {1.0}), (replace(setting("gw-awq"), full_range=True), {1.0, -1.0})):
        with quantized(bench, Plan.uniform(wanted), with_codes=True) as model:
            found = {sign for codes in model.codes.values() for sign in codes.scale.float().sign().unique().tolist()}
            assert found == signs
