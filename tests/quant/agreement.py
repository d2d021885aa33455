"""When the package's result for a Linear is the reference's: the same exponent, scale, weight and losses."""

import pytest
import torch
from torch import Tensor

from quant.layers import QuantizedLinear, quantize_set
from quant.linears import LinearSet
from quant.scheme import dequantize, loaded
from quant.setting import Setting
from tests.quant import reference

ROUNDING = {
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-30},
    torch.float16: {"rtol": 2**-10, "atol": 1e-7},
    torch.float32: {"rtol": 1e-5, "atol": 1e-9},
}
TIE_OF_LOSSES = 1e-6
EXACT, UNDECIDED = 1e-4, 1e-2
"""How far losses may be apart: a scale that two precisions round differently changes its whole group."""
MOST = 0.85
"""Of the values of a small Linear; one row whose scale is undecided is a seventh of them."""


def run(given: LinearSet, rules: reference.Rules) -> list[QuantizedLinear]:
    """The package's result under the reference's rules, with an exact loss product."""
    values = {("scales" if name == "sharing" else name): value for name, value in vars(rules).items()}
    return quantize_set(given, Setting(**values), loss_dtype=torch.float32)


def effective(found: QuantizedLinear) -> Tensor:
    """`W_eff` in the model's dtype: what comes out, or what is stored, divided by the scale that folds away."""
    if found.codes is None:
        return found.weight
    stored = dequantize(found.codes)
    assert torch.equal(found.weight, loaded(found.codes).to(found.weight.dtype))
    return (stored if found.scale is None else stored / found.scale).to(found.weight.dtype)


def assert_same(found: QuantizedLinear, expected: reference.Choice, dtype: torch.dtype, n_grid: int) -> None:
    """Fails where they differ by more than float32 and rounding ties explain."""
    best = min(expected.shared_losses)
    chosen = round(found.alpha * n_grid)
    assert found.alpha == pytest.approx(chosen / n_grid, abs=1e-12)
    nearest_tolerance, tolerance = (
        EXACT if decided else UNDECIDED for decided in (expected.nearest_decided, expected.decided.all())
    )
    assert found.nearest_loss == pytest.approx(expected.nearest_loss, rel=nearest_tolerance)
    assert found.loss == pytest.approx(expected.losses[chosen], rel=tolerance)
    if found.alpha != pytest.approx(expected.alpha, abs=1e-12):
        assert expected.shared_losses[chosen] <= best * (1 + TIE_OF_LOSSES)
        return
    if expected.scale is None:
        assert found.scale is None
    else:
        torch.testing.assert_close(found.scale.double(), torch.tensor(expected.scale).double(), rtol=1e-5, atol=0)
    assert found.weight.dtype == dtype
    same = torch.isclose(effective(found).double(), expected.weight.to(dtype).double(), **ROUNDING[dtype])
    assert (same | ~expected.decided).all()
    assert same.double().mean() >= MOST
