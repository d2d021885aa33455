"""Schemes: `quantize` and `dequantize` are an inverse pair, to half a step, for every finite matrix."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from quant.errors import QuantizationError
from quant.scheme import (
    IntWeight,
    Scheme,
    dequantize,
    effective_weight,
    group_ranges,
    loaded,
    quantize,
    round_nearest,
    scale_type,
)
from tests.quant import reference
from tests.quant.synthetic import seeded

SCALE_TYPES = (torch.bfloat16, torch.float16)
EXTREMES = (0.0, -0.0, 1.0, -7.0, 1e30, -1e30, 1e-30, -1e-30, 65504.0, 6e-8, 3e38, -3e38)
NUMBERS = st.one_of(st.sampled_from(EXTREMES), st.floats(-100, 100, width=32, allow_subnormal=False))


@st.composite
def schemes(draw: st.DrawFn, symmetric: bool | None = None) -> Scheme:
    return Scheme(
        bits=draw(st.integers(2, 8)),
        group_size=draw(st.sampled_from([None, 1, 2, 3, 8, 32, 64])),
        symmetric=draw(st.booleans()) if symmetric is None else symmetric,
        scale_dtype=draw(st.sampled_from(SCALE_TYPES)),
    )


@st.composite
def rows(draw: st.DrawFn, inputs: int) -> list[float]:
    """A row of zeros, of one number, of arbitrary numbers, or of normal ones with one outlier."""
    kind = draw(st.sampled_from(["zero", "constant", "any", "normal", "one-sided"]))
    if kind == "zero":
        return [0.0] * inputs
    if kind == "constant":
        return [draw(NUMBERS)] * inputs
    if kind == "any":
        return draw(st.lists(NUMBERS, min_size=inputs, max_size=inputs))
    normal = torch.randn(inputs, generator=seeded(draw(st.integers(0, 999))))
    if kind == "one-sided":
        return normal.abs().tolist()
    normal[draw(st.integers(0, inputs - 1))] = draw(NUMBERS)
    return normal.tolist()


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    inputs = draw(st.sampled_from([1, 2, 7, 8, 24, 33]))
    return torch.tensor(draw(st.lists(rows(inputs), min_size=1, max_size=4)))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 8, 16])
def test_a_matrix_without_rows_has_no_codes(symmetric: bool, group_size: int | None) -> None:
    """Where every row is kept in 16 bit, nothing is left to quantize, and that is no error."""
    scheme = Scheme(group_size=group_size, symmetric=symmetric)
    packed = quantize(torch.empty(0, 24), scheme)
    assert packed.codes.shape == (0, 24)
    assert packed.scale.shape == (0, scheme.groups(24))
    assert dequantize(packed).shape == round_nearest(torch.empty(0, 24), scheme).shape == (0, 24)


def spread(per_group: Tensor, weight: IntWeight) -> Tensor:
    """A value per group as one per element, float64 `[O, I]`."""
    inputs = weight.codes.shape[1]
    return torch.stack([per_group[:, j // weight.group_size].double() for j in range(inputs)], 1)


def exact_scale(weight: Tensor, scheme: Scheme) -> Tensor:
    """The scale of each group before it is rounded to 16 bits, float64 `[O, G]`."""
    groups = weight.double().split(scheme.group_size or weight.shape[1], 1)
    if scheme.symmetric:
        return torch.stack([group.abs().amax(1) / (2 ** (scheme.bits - 1) - 1) for group in groups], 1)
    return torch.stack(
        [(group.amax(1).clamp(min=0) - group.amin(1).clamp(max=0)) / (2**scheme.bits - 1) for group in groups], 1
    )


def ends(scheme: Scheme) -> tuple[int, int]:
    """The least and the greatest code."""
    levels = 2**scheme.bits
    return (-levels // 2, levels // 2 - 1) if scheme.symmetric else (0, levels - 1)


def in_normal_range(scale: Tensor, dtype: torch.dtype) -> Tensor:
    limits = torch.finfo(dtype)
    return (scale >= limits.tiny) & (scale <= limits.max)


@given(matrices(), schemes())
def test_codes_scales_and_zeros_are_in_range(weight: Tensor, scheme: Scheme) -> None:
    """Codes and zero points fit their bits, and every scale is a positive finite number of the scheme's type."""
    packed = quantize(weight, scheme)
    outputs, inputs = weight.shape
    low, high = ends(scheme)
    assert packed.codes.shape == weight.shape
    stored = torch.uint8 if high == 255 else torch.int8
    assert packed.codes.dtype == stored
    assert packed.bits == scheme.bits
    assert packed.codes.min() >= low
    assert packed.codes.max() <= high
    assert packed.scale.shape == (outputs, scheme.groups(inputs))
    assert packed.scale.dtype == scheme.scale_dtype
    assert (packed.scale > 0).all()
    assert packed.scale.isfinite().all()
    assert (packed.zero is None) == scheme.symmetric
    if packed.zero is not None:
        assert packed.zero.dtype == stored
        assert packed.zero.shape == packed.scale.shape
        assert packed.zero.min() >= 0
        assert packed.zero.max() <= high


@given(matrices(), schemes())
def test_error_is_at_most_half_a_step(weight: Tensor, scheme: Scheme) -> None:
    """A weight inside its group's scheme moves by at most half a step, one outside goes to the nearest end."""
    packed = quantize(weight, scheme)
    value, w = dequantize(packed).double(), weight.double()
    step = spread(packed.scale, packed)
    zero = 0.0 if packed.zero is None else spread(packed.zero, packed)
    low, high = ((end - zero) * step for end in ends(scheme))
    nearest_end = w.clamp(low, high)
    assert ((value - nearest_end).abs() <= 0.5 * step * (1 + 1e-5)).all()
    # Only the rounding of a scale to 16 bits may leave weights outside, as long as its type can hold the scale.
    held = in_normal_range(spread(exact_scale(weight, scheme), packed), scheme.scale_dtype)
    slack = ends(scheme)[1] * torch.finfo(scheme.scale_dtype).eps / 2
    assert ((value - w).abs() <= (0.5 + slack) * step * (1 + 1e-5))[held].all()


@given(matrices(), schemes())
@example(torch.tensor([[3e38, -3e38]]), Scheme(group_size=None, symmetric=False))
def test_scale_is_the_largest_weight_over_the_codes(weight: Tensor, scheme: Scheme) -> None:
    """A scale is the group's range over its steps, rounded to its type, and 1 for a group of zeros."""
    exact, stored = exact_scale(weight, scheme), quantize(weight, scheme).scale.double()
    held = in_normal_range(exact, scheme.scale_dtype)
    assert ((stored - exact).abs() <= exact * torch.finfo(scheme.scale_dtype).eps / 2 * (1 + 1e-5))[held].all()
    assert (stored[exact == 0] == 1).all()


@given(matrices(), schemes())
def test_zero_stays_zero(weight: Tensor, scheme: Scheme) -> None:
    """A weight of zero is a value of every scheme, so a row of zeros comes back as zeros."""
    value = dequantize(quantize(weight, scheme))
    assert (value[weight == 0] == 0).all()
    assert (value[(weight == 0).all(1)] == 0).all()


@given(matrices(), schemes())
def test_round_nearest_is_quantize_then_dequantize(weight: Tensor, scheme: Scheme) -> None:
    """`round_nearest` gives bit for bit what storing the codes and reading them back gives."""
    assert torch.equal(round_nearest(weight, scheme), dequantize(quantize(weight, scheme)))


@given(matrices(), schemes(symmetric=True))
def test_symmetric_requantization_changes_nothing(weight: Tensor, scheme: Scheme) -> None:
    """A symmetric scheme uses plus or minus its highest code in each group, so scales and codes stay the same."""
    packed = quantize(weight, scheme)
    again = quantize(dequantize(packed), scheme)
    exact = exact_scale(weight, scheme)
    held = in_normal_range(exact, scheme.scale_dtype) | (exact == 0)
    largest = torch.stack(
        [codes.int().abs().amax(1) for codes in packed.codes.split(scheme.group_size or weight.shape[1], 1)], 1
    )
    assert (largest[held & (exact > 0)] == ends(scheme)[1]).all()
    assert torch.equal(again.scale[held], packed.scale[held])
    elements = spread(held, packed).bool()
    assert torch.equal(again.codes[elements], packed.codes[elements])


@given(matrices(), schemes(symmetric=False))
def test_asymmetric_requantization_of_full_groups_changes_nothing(weight: Tensor, scheme: Scheme) -> None:
    """Where codes and zero point span all levels a dequantized weight has the same scale, zero point and codes.

    Ends that round towards each other leave a span of one less; such a group gets a finer scheme the second time.
    """
    packed = quantize(weight, scheme)
    again = quantize(dequantize(packed), scheme)
    groups = packed.codes.int().split(scheme.group_size or weight.shape[1], 1)
    zero = packed.zero.int()
    low = torch.stack([codes.amin(1) for codes in groups], 1).minimum(zero)
    high = torch.stack([codes.amax(1) for codes in groups], 1).maximum(zero)
    full = (low == 0) & (high == ends(scheme)[1])
    assert torch.equal(again.scale[full], packed.scale[full])
    assert torch.equal(again.zero[full], packed.zero[full])
    elements = spread(full, packed).bool()
    assert torch.equal(again.codes[elements], packed.codes[elements])


@given(matrices(), schemes(symmetric=True))
def test_the_largest_weight_has_the_lowest_code_of_a_full_range(weight: Tensor, scheme: Scheme) -> None:
    """Of either sign, by a negative scale where it is positive: a step is shorter than with one code less."""
    scheme = replace(scheme, full_range=True)
    packed, size = quantize(weight, scheme), scheme.group_size or weight.shape[1]
    for group, codes, scale in zip(
        weight.split(size, 1), packed.codes.split(size, 1), packed.scale.unbind(1), strict=True
    ):
        largest = group.abs().amax(1, keepdim=True)
        held = in_normal_range(largest.double() / -scheme.lowest, scheme.scale_dtype).flatten()
        lowest = (codes == scheme.lowest) & (group.abs() == largest)
        assert lowest.any(1)[held].all()
        assert (torch.sign(scale)[:, None] == -torch.sign(group))[lowest].all()
    values, step = dequantize(packed).double(), spread(packed.scale.abs(), packed)
    nearest_end = weight.double().clamp(-scheme.highest * step, scheme.highest * step)
    assert ((values - weight.double()).abs() <= (weight.double() - nearest_end).abs() + 0.5 * step * (1 + 1e-5)).all()
    assert torch.equal(round_nearest(weight, scheme), dequantize(packed))


def test_a_full_range_uses_its_lowest_code_for_both_signs() -> None:
    """Eight steps to the largest magnitude instead of seven; a scheme with zero points has no other range."""
    scheme = Scheme(group_size=4, full_range=True)
    packed = quantize(torch.tensor([[-8.0, 7, 3, 0, 8, -7, -3, 0]]), scheme)
    assert packed.scale.tolist() == [[1.0, -1.0]]
    assert packed.codes.tolist() == [[-8, 7, 3, 0, -8, 7, 3, 0]]
    with pytest.raises(QuantizationError, match="full_range is for symmetric ones"):
        Scheme(symmetric=False, full_range=True)


@given(st.integers(0, 999), st.sampled_from([None, 1, 5, 8, 64]), st.booleans(), st.sampled_from(SCALE_TYPES))
def test_rounding_equals_the_literal_formula(
    seed: int, group_size: int | None, symmetric: bool, scale_dtype: torch.dtype
) -> None:
    """Values are those of the literal formula, rounding ties to even, for weights that come from bfloat16."""
    random = seeded(seed)
    weight = torch.randn(3, 19, generator=random) * torch.randn(19, generator=random).exp()
    weight = weight.bfloat16().float()
    scheme = Scheme(group_size=group_size, symmetric=symmetric, scale_dtype=scale_dtype)
    expected, _ = reference.fake_quantize(weight, group_size, symmetric, scale_dtype)
    assert torch.equal(round_nearest(weight, scheme), expected.float())


@pytest.mark.parametrize("symmetric", [True, False])
def test_known_codes(symmetric: bool) -> None:
    """A group from -7 to 7, or from -5 to 10, in steps of one keeps its numbers; ties go to the even code."""
    low, high = (-7, 7) if symmetric else (-5, 10)
    weight = torch.tensor([[low, -1.5, -0.5, 0, 0.5, 2.5, high]])
    packed = quantize(weight, Scheme(group_size=None, symmetric=symmetric))
    offset = 0 if symmetric else 5
    assert packed.scale.tolist() == [[1.0]]
    assert packed.codes.tolist() == [[code + offset for code in (low, -2, 0, 0, 0, 2, high)]]
    assert dequantize(packed).tolist() == [[low, -2, 0, 0, 0, 2, high]]


@given(st.integers(0, 999), st.booleans(), st.integers(1, 40), st.integers(1, 12))
def test_partial_group_is_padded_with_zeros(seed: int, symmetric: bool, inputs: int, group_size: int) -> None:
    """A last partial group is rounded as if zeros were appended, and a group beyond the row as the row."""
    weight = torch.randn(2, inputs, generator=seeded(seed))
    scheme = Scheme(group_size=group_size, symmetric=symmetric)
    padded = torch.cat([weight, torch.zeros(2, -inputs % group_size)], 1)
    assert torch.equal(round_nearest(weight, scheme), round_nearest(padded, scheme)[:, :inputs])
    wide = Scheme(group_size=inputs + group_size, symmetric=symmetric)
    assert torch.equal(round_nearest(weight, wide), round_nearest(weight, Scheme(group_size=None, symmetric=symmetric)))


@pytest.mark.parametrize("group_size", [None, 4, 5, 64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_memory_layout_does_not_matter(group_size: int | None, symmetric: bool) -> None:
    """Transposed and sliced matrices, as fused projections have them, are rounded like contiguous copies."""
    whole = torch.randn(12, 20, generator=seeded(0))
    scheme = Scheme(group_size=group_size, symmetric=symmetric)
    for view in (whole.T, whole[:, 3:15], whole[::2], whole[:, ::2]):
        expected = round_nearest(view.clone(memory_format=torch.contiguous_format), scheme)
        assert torch.equal(round_nearest(view, scheme), expected)
        assert torch.equal(dequantize(quantize(view, scheme)), expected)
        ones = torch.ones(view.shape[1])
        assert torch.equal(effective_weight(view, ones, scheme), expected)


@given(matrices(), schemes(), st.sampled_from([2.0**-6, 0.5, 1.0, 4.0, 2.0**7]))
def test_effective_weight_of_a_constant_scale_is_plain_rounding(weight: Tensor, scheme: Scheme, factor: float) -> None:
    """A constant power of two as input scale scales the scheme along and cancels where its type holds them."""
    exact = exact_scale(weight, scheme)
    held = in_normal_range(exact, scheme.scale_dtype) & in_normal_range(exact * factor, scheme.scale_dtype) | (
        exact == 0
    )
    scaled = effective_weight(weight, torch.full((weight.shape[1],), factor), scheme)
    packed = quantize(weight, scheme)
    elements = spread(held, packed).bool() & (weight.abs() < 1e36) & ((weight == 0) | (weight.abs() > 1e-34))
    assert torch.equal(scaled[elements], dequantize(packed)[elements])


def test_groups_of_a_row() -> None:
    """A row has one group per started group size, and one in all when rows share a scale."""
    assert [Scheme(group_size=8).groups(inputs) for inputs in (1, 8, 9, 24)] == [1, 1, 2, 3]
    assert Scheme(group_size=None).groups(24) == 1


def test_group_ranges_are_float32_of_stored_numbers() -> None:
    """Scales handed to the rounding are already numbers of the 16-bit type."""
    groups = torch.randn(3, 4, 8, generator=seeded(0))
    for dtype in SCALE_TYPES:
        ranges = group_ranges(groups, Scheme(group_size=8, symmetric=False, scale_dtype=dtype))
        scale, zero = ranges.scale, ranges.zero
        assert scale.dtype == torch.float32
        assert zero is not None
        assert scale.shape == zero.shape == (3, 4, 1)
        assert torch.equal(scale, scale.to(dtype).float())


def test_scales_are_stored_in_the_type_of_the_model() -> None:
    """A 16-bit model stores scales in its own type, a wider one in float16."""
    assert scale_type(torch.bfloat16) == torch.bfloat16
    assert scale_type(torch.float16) == torch.float16
    assert scale_type(torch.float32) == torch.float16
    assert scale_type(torch.float64) == torch.float16


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"group_size": 0}, ("group size 0", "32, 64, 128 or 256")),
        ({"group_size": -8}, ("group size -8", "positive")),
        ({"bits": 1}, ("1 bits", "2..8")),
        ({"bits": 9, "group_size": 0}, ("9 bits", "group size 0")),
        ({"scale_dtype": torch.float32}, ("torch.float32", "bfloat16 or float16")),
        ({"scale_dtype": torch.int8}, ("torch.int8", "bfloat16 or float16")),
        ({"group_size": -1, "scale_dtype": torch.float32}, ("group size -1", "torch.float32")),
    ],
)
def test_invalid_scheme_is_refused(fields: dict[str, object], said: tuple[str, ...]) -> None:
    """A scheme that cannot be stored is refused in one line with everything received and what is allowed."""
    with pytest.raises(QuantizationError) as caught:
        Scheme(**fields)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in said), message


@pytest.mark.parametrize("dtype", SCALE_TYPES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_loaded_weight_is_in_the_type_of_its_scales(dtype: torch.dtype, symmetric: bool) -> None:
    """A code times a scale needs more digits than a 16-bit type has: what is loaded is the exact value rounded once."""
    whole = quantize(
        torch.randn(8, 64, generator=seeded(0)), Scheme(group_size=16, symmetric=symmetric, scale_dtype=dtype)
    )
    values = loaded(whole)
    assert values.dtype == dtype
    assert torch.equal(values, dequantize(whole).to(dtype))
    offset = 0 if whole.zero is None else whole.zero.repeat_interleave(16, 1)
    assert torch.equal(values, (whole.codes - offset).to(dtype) * whole.scale.repeat_interleave(16, 1))
    assert not torch.equal(values.float(), dequantize(whole))
