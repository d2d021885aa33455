"""Ingredients on models of every layout: each changes weights, and lowers the loss that it is there for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

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
    alone = [f"gw-awq+{name}" for name in INGREDIENTS if name not in ("alpha", "prefix")]
    for recipe in ("gw-awq", *alone, "gw-awq+range+alpha", "gw-awq+gptq+prefix"):
        with quantized(bench, Plan.uniform(setting(recipe))) as model:
            weights[recipe] = {
                linear.name: linear.weight().clone() for block in bench.blocks for linear in block.linears
            }
            losses[recipe] = sum(layer.final_loss for layer in model.layers)
            assert all(layer.final_loss <= layer.loss for layer in model.layers)
    for recipe, own in weights.items():
        basis = recipe.rpartition("+")[0]
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


@pytest.mark.parametrize("layout", ["llama", "opt", "gemma3"])
def test_following_the_quantized_prefix_brings_outputs_nearer(layout: str, tmp_path: Path) -> None:
    """To those of full precision, on the text that was calibrated on, and it leaves the model as it was."""
    bench = tiny.bench(tiny.model(tiny.LAYOUTS[layout]()), tmp_path / "home")
    before = tiny.state(bench.model.module)

    def outputs() -> Tensor:
        with torch.no_grad():
            return torch.cat([bench.model.module(ids[None]).logits[0] for ids in bench.calibration.text.ids])

    exact, away = outputs(), {}
    for recipe in ("gw-awq+gptq", "gw-awq+gptq+prefix"):
        with quantized(bench, Plan.uniform(setting(recipe))):
            away[recipe] = float((outputs() - exact).square().sum())
    assert away["gw-awq+gptq+prefix"] < away["gw-awq+gptq"]
    assert tiny.same_bits(before, tiny.state(bench.model.module))


def test_linears_follow_the_prefix_one_by_one(tmp_path: Path) -> None:
    """In a plan of several settings only those that ask for it are corrected; nearest rounding does not read it."""
    bench = tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path / "home")
    usual, followed = setting("gw-awq+gptq"), setting("gw-awq+gptq+prefix")
    assert replace(setting("gw-awq"), prefix="quantized").canonical() == setting("gw-awq").canonical()
    last = {linear.name: followed for site in bench.blocks[-1].sites[-2:] for linear in site.linears}
    weights = []
    for plan in (Plan.uniform(usual), Plan(named=last, others=usual)):
        with quantized(bench, plan):
            weights.append({linear.name: linear.weight().clone() for b in bench.blocks for linear in b.linears})
    moved = {name for name, weight in weights[0].items() if not weight.equal(weights[1][name])}
    assert moved
    assert moved <= last.keys()
