"""Packed words hold every code, in the places where other programs look for them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.errors import QuantizationError
from quant.packing import interleaved, pack, packed_tensors, unpack, unpacked
from quant.scheme import SCALE_TYPES, IntWeight, Scheme, dequantize, quantize
from tests.quant.synthetic import seeded

PER_WORD = 8
SHAPES = st.tuples(st.integers(1, 21), st.integers(1, 70))
SCHEMES = st.builds(
    Scheme,
    bits=st.sampled_from([2, 4, 8]),
    group_size=st.sampled_from([None, 1, 7, 8, 32]),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from(SCALE_TYPES),
)


def same(first: IntWeight, second: IntWeight) -> bool:
    """Whether two matrices hold the same codes, scales and zero points, in the same types."""
    pairs = [(first.codes, second.codes), (first.scale, second.scale)]
    if first.zero is not None and second.zero is not None:
        pairs.append((first.zero, second.zero))
    alike = all(tensor.dtype == other.dtype and torch.equal(tensor, other) for tensor, other in pairs)
    return alike and (first.zero is None) == (second.zero is None)


@given(shape=SHAPES, seed=st.integers(0, 99))
def test_unpacking_undoes_packing(shape: tuple[int, int], seed: int) -> None:
    """Whatever the shape, every number comes back; a word holds eight of them and the last one is filled with zeros."""
    numbers = torch.randint(0, 16, shape, generator=seeded(seed), dtype=torch.int8)
    words = pack(numbers)
    assert words.dtype == torch.int32
    assert words.shape == (shape[0], -(-shape[1] // PER_WORD))
    assert torch.equal(unpack(words, shape[1]), numbers)
    assert not unpack(words, words.shape[1] * PER_WORD)[:, shape[1] :].any()


def test_the_first_number_is_in_the_lowest_bits() -> None:
    """Number i of a word takes the bits 4 i to 4 i + 3, and the last one's top bit is the sign."""
    for place in range(PER_WORD):
        numbers = torch.zeros(1, PER_WORD, dtype=torch.int8)
        numbers[0, place] = 9
        assert int(pack(numbers)) % 2**32 == 9 << 4 * place
    assert int(pack(torch.full((1, PER_WORD), 15))) == -1


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_codes_that_do_not_fill_words_are_refused(bits: int) -> None:
    """The format has no place for a code that lies in two words."""
    whole = quantize(torch.ones(2, 8), Scheme(bits=bits, group_size=8))
    with pytest.raises(QuantizationError, match=f"codes of {bits} bits do not fill words of 32; use 2, 4 or 8"):
        packed_tensors(whole)


@given(shape=SHAPES, seed=st.integers(0, 99), scheme=SCHEMES)
def test_a_quantized_matrix_comes_back_from_its_tensors(shape: tuple[int, int], seed: int, scheme: Scheme) -> None:
    """Codes, scales and zero points come back to the last bit, and with them every value."""
    weight = torch.randn(shape, generator=seeded(seed)) * 10.0 ** (seed % 5 - 2)
    weight[:, ::3] = 0
    whole = quantize(weight, scheme)
    tensors = packed_tensors(whole)
    assert tensors["weight_shape"].tolist() == list(shape)
    assert ("weight_zero_point" in tensors) == (not scheme.symmetric)
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    back = unpacked(tensors, scheme.bits)
    assert same(back, whole)
    # A partial last group leaves no trace in the format, which has none.
    if shape[1] % (scheme.group_size or 1) == 0:
        assert torch.equal(dequantize(back), dequantize(whole))


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_stored_eight_above_their_signed_value(symmetric: bool) -> None:
    """Zero is stored as 8 on a symmetric scheme, and as the zero point, stored as it is, on an asymmetric one."""
    weight = torch.tensor([[-1.0, 0.0, 2.0, 0.0]])
    tensors = packed_tensors(quantize(weight, Scheme(group_size=4, symmetric=symmetric)))
    assert unpack(tensors["weight_packed"], 3).tolist() == [[4, 8, 15] if symmetric else [0, 5, 15]]
    if not symmetric:
        assert unpack(tensors["weight_zero_point"].T, 1).tolist() == [[5]]


@given(seed=st.integers(0, 99), symmetric=st.booleans())
def test_slices_of_a_fused_matrix_become_the_matrix(seed: int, symmetric: bool) -> None:
    """Rows that were quantized apart, in any arrangement, are those of the matrix quantized as a whole."""
    weight = torch.randn(18, 32, generator=seeded(seed))
    scheme = Scheme(group_size=16, symmetric=symmetric)
    rows = torch.randperm(18, generator=seeded(seed)).split([5, 12, 1])
    parts = [(own, quantize(weight[own], scheme)) for own in rows]
    assert same(interleaved(parts), quantize(weight, scheme))
