"""A scale that folds into a norm or into rows is stored exactly, and is what the codes were computed with."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quant.layers import quantize_set
from quant.linears import HeadTie
from quant.scaling.folding import NormWeight
from quant.scaling.search import QuadraticForm
from quant.scheme import dequantize, effective_weight
from quant.setting import Setting
from tests.quant import synthetic
from tests.quant.agreement import effective
from tests.quant.synthetic import INPUTS, Layout, seeded

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
AWQ = Setting(method="gw-awq", group_size=12, n_grid=8, symmetric=False)


def norm(seed: int, dtype: torch.dtype, offset: float) -> NormWeight:
    """A norm whose gains are around 1, one of them 0 and one negative."""
    gain = torch.randn(INPUTS, generator=seeded(seed)).mul(0.3).exp()
    gain[3], gain[5] = 0, -gain[5]
    return NormWeight(weight=(gain - offset).to(dtype), offset=offset)


def gain(weight: Tensor, offset: float) -> Tensor:
    return weight.double() + offset


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@settings(max_examples=30)
@given(seed=st.integers(0, 99), spread=st.sampled_from([0.01, 0.5, 3.0]))
def test_a_representable_scale_is_exactly_the_ratio_of_the_stored_gains(
    dtype: torch.dtype, offset: float, seed: int, spread: float
) -> None:
    """Divided by such a scale, the stored gain is the old one divided by it, with float32 precision and no less."""
    wanted = torch.randn(INPUTS, generator=seeded(seed + 1)).mul(spread).exp()
    given_norm = norm(seed, dtype, offset)
    scale = given_norm.representable(wanted)
    stored = given_norm.divided(scale)
    assert stored.dtype == dtype
    assert scale.isfinite().all()
    assert (scale > 0).all()
    torch.testing.assert_close(
        gain(stored, offset) * scale.double(), gain(given_norm.weight, offset), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_representable_scale_is_near_the_one_that_was_wanted(dtype: torch.dtype) -> None:
    """A norm that multiplies with its weight holds any scale to half a unit in the last place."""
    wanted = torch.linspace(0.01, 100, INPUTS)
    given_norm = NormWeight(weight=(torch.rand(INPUTS, generator=seeded(0)) + 0.5).to(dtype))
    torch.testing.assert_close(given_norm.representable(wanted), wanted, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_identity_changes_no_bit(offset: float) -> None:
    """Where nothing is scaled the weight stays as it is, also one that float32 cannot add 1 to and subtract it from."""
    given_norm = NormWeight(weight=torch.tensor([1e-9, -1.0, 0.3, 7e4]).bfloat16(), offset=offset)
    assert torch.equal(given_norm.divided(torch.ones(4)), given_norm.weight)
    assert torch.equal(given_norm.representable(torch.ones(4)), torch.ones(4))


def test_a_scale_that_would_leave_nothing_of_a_gain_is_not_taken() -> None:
    """`1 + w` has coarse steps near 0: what would round to 0 or infinity is left as it is."""
    given_norm = NormWeight(weight=torch.tensor([-0.99, 0.5, 3e38]).bfloat16(), offset=1.0)
    scale = torch.tensor([1e3, 2.0, 1e-5])
    assert given_norm.divided(scale).tolist()[::2] == given_norm.weight.tolist()[::2]
    assert given_norm.representable(scale).tolist() == [1.0, 2.0, 1.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["attention", "gate-up"])
def test_a_set_is_searched_with_scales_that_its_norm_can_hold(layout: Layout, dtype: torch.dtype) -> None:
    """The scale that comes out is one that the norm holds, and its loss is that of the codes that come out."""
    given_set = synthetic.linear_set(synthetic.layers(layout, 1, dtype))
    given_norm = norm(1, dtype, 1.0)
    found = quantize_set(replace(given_set, norm=given_norm), AWQ, torch.float32)
    form = QuadraticForm(given_set.inputs.gram, torch.float32)
    for quantized, linear in zip(found, given_set.linears, strict=True):
        assert quantized.alpha > 0
        torch.testing.assert_close(given_norm.representable(quantized.scale), quantized.scale)
        error = dequantize(quantized.codes) / quantized.scale - linear.weight.float()
        assert float(form(error).sum()) == pytest.approx(quantized.loss, rel=1e-3)


@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_take_a_divisor_before_they_are_rounded(symmetric: bool) -> None:
    """Codes are those of the divided rows; the loss is that of the outputs multiplied back."""
    given_set = synthetic.linear_set(synthetic.layers("gate-up", 2, torch.bfloat16))
    divisor = torch.rand(7, generator=seeded(5)) + 0.3
    first, second = given_set.linears
    divided = replace(given_set, linears=(first, replace(second, divisor=divisor)))
    setting = replace(AWQ, symmetric=symmetric)
    _, found = quantize_set(divided, setting, torch.float32)
    rows = second.weight.float() / divisor[:, None]
    expected = effective_weight(rows, found.scale, setting.scheme(torch.bfloat16))
    assert torch.equal(effective(found), expected.bfloat16())
    error = expected * divisor[:, None] - second.weight.float()
    form = QuadraticForm(given_set.inputs.gram, torch.float32)
    assert float(form(error).sum()) == pytest.approx(found.loss, rel=1e-3)


def test_a_power_of_two_in_the_rows_changes_no_code() -> None:
    """A divisor that only moves exponents leaves codes and loss as they are and divides the scales."""
    given_set = synthetic.linear_set(synthetic.layers("down", 3, torch.bfloat16))
    [linear] = given_set.linears
    [plain] = quantize_set(given_set, AWQ)
    divided = replace(given_set, linears=(replace(linear, divisor=torch.full((7,), 4.0)),))
    [found] = quantize_set(divided, AWQ)
    assert torch.equal(found.codes.codes, plain.codes.codes)
    assert torch.equal(found.codes.scale * 4, plain.codes.scale)
    assert found.loss == pytest.approx(plain.loss, rel=1e-6)


def test_scales_are_stored_in_the_type_of_the_files() -> None:
    """Computing in float32 for a bfloat16 file rounds scales to bfloat16."""
    given_set = synthetic.linear_set(synthetic.layers("down", 3, torch.float32))
    [own] = quantize_set(given_set, AWQ)
    [stored] = quantize_set(replace(given_set, stored=torch.bfloat16), AWQ)
    assert (own.codes.scale.dtype, stored.codes.scale.dtype) == (torch.float16, torch.bfloat16)


def test_a_tied_scale_has_one_number_per_value() -> None:
    """What the rows of the value projection are divided by is what each of their query heads is multiplied with."""
    tie = HeadTie(kv_heads=2, repeats=3, head_dim=4)
    scale = tie.average(torch.rand(24, generator=seeded(1)))
    values = tie.per_value(scale)
    assert values.shape == (8,)
    assert torch.equal(values.view(2, 1, 4).expand(2, 3, 4).flatten(), scale)
