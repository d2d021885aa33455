"""Every method computes what the literal float64 reference computes: the same exponent, scale, weight and losses."""

from itertools import product

import pytest
import torch

from quant.layers import LinearSet, QuantizedLinear, quantize_set
from quant.methods import Setting
from tests.quant import reference, synthetic
from tests.quant.synthetic import INPUTS, TIE, Layout

METHODS = ("rtn", "gw-awq", "gwh-praq-v1", "gwh-praq-v2")
LAYOUTS: tuple[Layout, ...] = ("attention", "tied", "gate-up", "down")
GROUP_SIZES = (12, 16, 64)
"""One divides the inputs, one leaves a partial group, one exceeds them."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ROUNDING = {
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-30},
    torch.float16: {"rtol": 2**-10, "atol": 1e-7},
    torch.float32: {"rtol": 1e-5, "atol": 1e-9},
}
TIE_OF_LOSSES = 1e-6


def run(given: reference.Layers, rules: reference.Rules) -> list[QuantizedLinear]:
    """The package's result for the same Linears and rules, with an exact loss product."""
    setting = Setting(
        method=rules.method,
        beta=rules.beta,
        tau=rules.tau,
        n_grid=rules.n_grid,
        group_size=rules.group_size,
        symmetric=rules.symmetric,
        scales=rules.sharing,
        placement=rules.placement,
    )
    return quantize_set(synthetic.linear_set(given), setting, loss_dtype=torch.float32)


def assert_same(found: QuantizedLinear, expected: reference.Choice, dtype: torch.dtype, n_grid: int) -> None:
    best = min(expected.shared_losses)
    chosen = round(found.alpha * n_grid)
    assert found.alpha == pytest.approx(chosen / n_grid, abs=1e-12)
    assert found.nearest_loss == pytest.approx(expected.losses[0], rel=1e-4)
    assert found.loss == pytest.approx(expected.losses[chosen], rel=1e-4)
    if found.alpha != pytest.approx(expected.alpha, abs=1e-12):
        assert expected.shared_losses[chosen] <= best * (1 + TIE_OF_LOSSES)
        return
    if expected.scale is None:
        assert found.scale is None
    else:
        torch.testing.assert_close(found.scale.double(), torch.tensor(expected.scale).double(), rtol=1e-5, atol=0)
    assert found.weight.dtype == dtype
    same = torch.isclose(found.weight.double(), expected.weight.to(dtype).double(), **ROUNDING[dtype])
    assert (same | ~expected.decided).all()
    assert same.double().mean() >= 0.98


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("sharing", ["linear", "foldable"])
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
        )
        expected = reference.quantize(given, rules)
        for found, wanted, layer in zip(run(given, rules), expected, given.layers, strict=True):
            assert found.name == layer.name
            assert_same(found, wanted, dtype, rules.n_grid)


@pytest.mark.parametrize("method", ["gwh-praq-v1", "gwh-praq-v2"])
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
    for found, wanted in zip(run(given, rules), reference.quantize(given, rules), strict=True):
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
