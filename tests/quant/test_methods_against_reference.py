"""Every method computes what the literal float64 reference computes: the same exponent, scale, weight and losses."""

from itertools import product

import pytest
import torch

from quant.layers import quantize_set
from quant.linears import LinearSet
from quant.methods import METHODS
from quant.setting import Setting
from tests.quant import reference, synthetic
from tests.quant.agreement import assert_same, run
from tests.quant.synthetic import INPUTS, TIE, Layout

LAYOUTS: tuple[Layout, ...] = ("attention", "tied", "gate-up", "down")
GROUP_SIZES = (12, 16, 64)
"""One divides the inputs, one leaves a partial group, one exceeds them."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


ONCE = {("foldable", True, 12), ("linear", False, 16)}
"""Every formula on both ways of sharing and both kinds of codes; the other combinations are for `make check-all`."""


@pytest.mark.parametrize(
    ("sharing", "symmetric", "group_size"),
    [
        pytest.param(*case, marks=() if case in ONCE else pytest.mark.slow)
        for case in product(["linear", "foldable"], [True, False], GROUP_SIZES)
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_method_equals_reference(method: str, layout: Layout, sharing: str, symmetric: bool, group_size: int) -> None:
    """A method chooses the exponent and produces the effective weight that the literal formulas give."""
    for seed, dtype in enumerate(DTYPES):
        given = synthetic.layers(layout, 10 * seed, dtype)
        rules = reference.Rules(
            method=method,
            beta=(0.5, 0.0, 0.8)[seed],
            tau=(2.0, 0.5, 5.0)[seed],
            n_grid=(8, 5, 6)[seed],
            group_size=group_size,
            symmetric=symmetric,
            sharing=sharing,
            keep_ratio=(0.2, 0.5, 0.35)[seed],
            beta_risk=(3.0, 0.3, -0.2)[seed],
            tau_risk=(-3.0, 15.0, 20.0)[seed],
            noise_factor=(0.2, 0.0, 30.0)[seed],
            variance_penalty=(0.5, 0.0, 2.0)[seed],
        )
        expected = reference.quantize(given, rules)
        for found, wanted, layer in zip(run(synthetic.linear_set(given), rules), expected, given.layers, strict=True):
            assert found.name == layer.name
            assert_same(found, wanted, dtype, rules.n_grid)


@pytest.mark.parametrize("method", ["gw-praq", "gwh-praq-v1", "gwh-praq-v2"])
@pytest.mark.parametrize("layout", ["gate-up", "down"])
def test_structural_placement_equals_reference(method: str, layout: Layout) -> None:
    """Structural placement weighs gate by its activation, up by the gated product and down by its plain outputs."""
    given = synthetic.layers(layout, 3, torch.bfloat16)
    rules = reference.Rules(
        method=method,
        beta=0.6,
        tau=0.4,
        n_grid=7,
        group_size=12,
        symmetric=True,
        sharing="linear",
        placement="structural",
    )
    for found, wanted in zip(run(synthetic.linear_set(given), rules), reference.quantize(given, rules), strict=True):
        assert_same(found, wanted, torch.bfloat16, rules.n_grid)


def test_reference_is_not_trivial() -> None:
    """Over the compared cases the chosen exponents differ, so agreement with the reference means something."""
    chosen = set()
    for layout, seed in product(LAYOUTS, range(3)):
        rules = reference.Rules(
            method="gw-awq", beta=0.5, tau=2.0, n_grid=8, group_size=12, symmetric=False, sharing="foldable"
        )
        chosen |= {choice.alpha for choice in reference.quantize(synthetic.layers(layout, seed, torch.float32), rules)}
    assert len(chosen) >= 3
    assert chosen - {0.0, 1.0}


def test_tied_scale_is_equal_over_query_heads() -> None:
    """A foldable scale of an output projection is exactly equal for the query heads of one key/value head."""
    given = synthetic.linear_set(synthetic.layers("tied", 1, torch.bfloat16))
    [found] = quantize_set(given, Setting(method="gw-awq", group_size=12, symmetric=False))
    heads = found.scale.view(TIE)
    assert found.alpha > 0
    assert torch.equal(heads, heads[:, :1].expand_as(heads))
    assert len(found.scale.unique()) == INPUTS // TIE[1]


def test_unfoldable_input_is_not_scaled() -> None:
    """Where no scale can fold, foldable quantization rounds to nearest while linear quantization still searches."""
    given = synthetic.linear_set(synthetic.layers("down", 1, torch.bfloat16))
    given = LinearSet(linears=given.linears, kind=given.kind, inputs=given.inputs, folds=False)
    [folded] = quantize_set(given, Setting(method="gw-awq", group_size=12))
    [nearest] = quantize_set(given, Setting(method="rtn", group_size=12))
    [own] = quantize_set(given, Setting(method="gw-awq", group_size=12, scales="linear"))
    assert folded.scale is None
    assert folded.alpha == 0
    assert torch.equal(folded.weight, nearest.weight)
    assert own.scale is not None
