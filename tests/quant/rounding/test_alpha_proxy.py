"""The search for input scales on searched ranges: it takes the one of least loss there, and losses keep meaning."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quant.layers import quantize_set
from quant.linears import LinearSet
from quant.rounding.inputs import ScaledInputs
from quant.rounding.ranges import FEW_SHARES
from quant.scaling.salience import input_salience
from quant.scaling.search import candidate_scales
from quant.scheme import (
    Ranges,
    Scheme,
    dequantize,
    effective_weight,
    group_ranges,
    grouped,
    quantize,
    stored_scale,
)
from quant.setting import Setting
from tests.quant import synthetic
from tests.quant.synthetic import Layout

STEPS = 10
SETS = {
    (layout, seed): synthetic.linear_set(synthetic.layers(layout, seed, torch.float32))
    for layout in ("attention", "tied", "gate-up", "down")
    for seed in range(4)
}


def setting(**fields: object) -> Setting:
    return Setting(**{"method": "gw-awq", "group_size": 12, "n_grid": STEPS, "range_search": "diagonal", **fields})  # type: ignore[arg-type]


def few_ranges(scaled: Tensor, scheme: Scheme, inputs: ScaledInputs) -> Ranges:
    """Of a few shares of each group's range, that of the least error by the diagonal; the zero point stays."""
    whole = group_ranges(grouped(scaled, scheme), scheme)
    shares = [replace(whole, scale=stored_scale(whole.scale * share, scheme)) for share in FEW_SHARES]
    errors = [dequantize(quantize(scaled, scheme, ranges)) - scaled for ranges in shares]
    sums = [grouped(error.square() * inputs.diagonal, scheme).sum(-1, keepdim=True) for error in errors]
    chosen = torch.stack(sums).argmin(0, keepdim=True)
    return replace(whole, scale=torch.stack([ranges.scale for ranges in shares]).gather(0, chosen)[0])


def losses(linears: LinearSet, wanted: Setting) -> list[float]:
    """The summed loss of every candidate, by the definition: ranges of a few shares, then nearest rounding."""
    assert linears.tie is None
    weights = [linear.weight for linear in linears.linears]
    importances = [linear.outputs.magnitude for linear in linears.linears]
    salience = input_salience(wanted, linears.kind, linears.inputs, weights, importances)
    scheme = wanted.scheme(torch.float32)
    totals = []
    for scale in candidate_scales(salience, STEPS):
        total = 0.0
        for linear in linears.linears:
            scaled = linear.weight * scale
            inputs = ScaledInputs(statistics=linears.inputs, scale=scale)
            ranges = few_ranges(scaled, scheme, inputs)
            delta = (dequantize(quantize(scaled, scheme, ranges)) / scale - linear.weight).double()
            total += float(((delta @ linears.inputs.gram.double()) * delta).sum())
        totals.append(total)
    return totals


@pytest.mark.parametrize("layout", ["attention", "gate-up", "down"])
def test_the_proxy_chooses_the_scale_of_least_loss_in_its_ranges(layout: Layout) -> None:
    """Its choice is the literal minimum; somewhere it differs from nearest rounding's."""
    moved = 0
    for seed in range(4):
        linears = SETS[layout, seed]
        by_range = quantize_set(linears, setting(alpha_proxy="range"), torch.float32)
        by_nearest = quantize_set(linears, setting(), torch.float32)
        expected = losses(linears, setting())
        chosen = round(by_range[0].alpha * STEPS)
        assert expected[chosen] <= min(expected) * (1 + 1e-5)
        moved += by_range[0].alpha != by_nearest[0].alpha
    assert moved


@pytest.mark.parametrize("layout", ["attention", "tied", "gate-up", "down"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_losses_mean_the_same_under_either_proxy(layout: Layout, rounding: str) -> None:
    """`nearest_loss` is that of no scaling, `loss` that of nearest rounding under the chosen scale, never below the
    final one."""
    linears = SETS[layout, 1]
    wanted = setting(alpha_proxy="range", rounding=rounding)
    scheme = wanted.scheme(torch.float32)
    usual = quantize_set(linears, setting(rounding=rounding), torch.float32)
    for linear, before, after in zip(linears.linears, usual, quantize_set(linears, wanted, torch.float32), strict=True):
        assert after.nearest_loss == before.nearest_loss
        scale = torch.ones_like(linears.inputs.magnitude) if after.scale is None else after.scale
        delta = (effective_weight(linear.weight, scale, scheme) - linear.weight).double()
        assert after.loss == pytest.approx(float(((delta @ linears.inputs.gram.double()) * delta).sum()), rel=1e-4)
        assert after.final_loss <= after.loss


def test_whole_ranges_have_no_other_proxy() -> None:
    """Without range search the proxy is not read: it is no part of a setting's meaning, and changes no bit."""
    linears = SETS["gate-up", 0]
    plain, other = setting(range_search="none"), setting(range_search="none", alpha_proxy="range")
    assert "alpha_proxy" not in other.reads
    assert plain.canonical() == other.canonical()
    for before, after in zip(quantize_set(linears, plain), quantize_set(linears, other), strict=True):
        assert torch.equal(before.weight, after.weight)
