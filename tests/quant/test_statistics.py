"""Calibration statistics: means over tokens, their merging and the packing of Gram matrices."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import silu

from quant.statistics import (
    InputStatistics,
    InputSums,
    OutputStatistics,
    OutputSums,
    merge,
    pack_symmetric,
    unpack_symmetric,
)
from tests.quant import synthetic
from tests.quant.synthetic import CPU, seeded

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def numpy_silu(z: np.ndarray) -> np.ndarray:
    return z / (1 + np.exp(-z))


def assert_close(found: Tensor, expected: np.ndarray, bound: np.ndarray) -> None:
    """Equal to float32 accuracy of a sum whose terms have the mean magnitude `bound`."""
    assert found.dtype == torch.float32
    assert (np.abs(found.double().numpy() - expected) <= 1e-6 * bound + 1e-12).all()


@st.composite
def splits(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """A number of tokens and consecutive runs of them, some perhaps empty."""
    tokens = draw(st.integers(1, 60))
    cuts = sorted(draw(st.lists(st.integers(0, tokens), max_size=5)))
    return tokens, list(pairwise([0, *cuts, tokens]))


@pytest.mark.parametrize("dtype", DTYPES)
@given(split=splits(), seed=st.integers(0, 99))
def test_input_sums_equal_float64(dtype: torch.dtype, split: tuple[int, list[tuple[int, int]]], seed: int) -> None:
    """Gram matrix, magnitudes and means of rows added in batches are those of float64 over all rows."""
    tokens, runs = split
    rows = synthetic.activations(tokens, 9, seed).to(dtype)
    sums = InputSums(9, CPU)
    for start, end in runs:
        sums.add(rows[start:end])
    found, x = sums.means(), rows.double().numpy()
    assert found.tokens == tokens
    assert_close(found.gram, x.T @ x / tokens, np.abs(x).T @ np.abs(x) / tokens)
    assert_close(found.magnitude, np.abs(x).mean(0), np.abs(x).mean(0))
    assert_close(found.mean, x.mean(0), np.abs(x).mean(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, silu])
@given(split=splits(), seed=st.integers(0, 99))
def test_output_sums_equal_float64(
    dtype: torch.dtype, activation: object, split: tuple[int, list[tuple[int, int]]], seed: int
) -> None:
    """Means of outputs, squares, magnitudes and activated magnitudes are those of float64 over all rows."""
    tokens, runs = split
    rows = synthetic.activations(tokens, 8, seed).to(dtype)
    sums = OutputSums(8, CPU)
    for start, end in runs:
        sums.add(rows[start:end], activation)
    found, z = sums.means(), rows.double().numpy()
    activated = np.abs(z if activation is None else numpy_silu(z)).mean(0)
    assert sums.tokens == tokens
    assert set(found) == {"mean", "square", "magnitude", "activated"}
    assert_close(found["mean"], z.mean(0), np.abs(z).mean(0))
    assert_close(found["square"], (z**2).mean(0), (z**2).mean(0))
    assert_close(found["magnitude"], np.abs(z).mean(0), np.abs(z).mean(0))
    assert_close(found["activated"], activated, np.abs(z).mean(0))


def test_small_batches_survive_a_large_one() -> None:
    """Sums over batches are float64: a thousand small batches after a huge one are not lost."""
    inputs, outputs = InputSums(1, CPU), OutputSums(1, CPU)
    for value in [2.0**14, *[1.0] * 1000]:
        inputs.add(torch.full((1, 1), value))
        outputs.add(torch.full((1, 1), value), None)
    square, plain = (2.0**28 + 1000) / 1001, (2.0**14 + 1000) / 1001
    assert float(inputs.means().gram) == pytest.approx(square, rel=1e-7)
    assert float(inputs.means().magnitude) == pytest.approx(plain, rel=1e-7)
    assert float(outputs.means()["square"]) == pytest.approx(square, rel=1e-7)


def test_no_rows_give_zeros() -> None:
    """Statistics of no tokens are zeros that weigh nothing, not a division by zero."""
    inputs = InputSums(3, CPU).means()
    assert inputs.tokens == 0
    assert not inputs.gram.any()
    assert not OutputSums(3, CPU).means()["square"].any()


@given(split=splits(), seed=st.integers(0, 99))
def test_merged_parts_equal_the_whole(split: tuple[int, list[tuple[int, int]]], seed: int) -> None:
    """Merging the statistics of consecutive runs gives those of all their rows, however they are cut."""
    tokens, runs = split
    rows = synthetic.activations(tokens, 6, seed)
    parts = [rows[start:end] for start, end in runs]
    whole_inputs = synthetic.input_statistics(rows)
    merged_inputs = merge([synthetic.input_statistics(part) for part in parts])
    assert isinstance(merged_inputs, InputStatistics)
    assert merged_inputs.tokens == tokens
    size = float(rows.abs().max())
    torch.testing.assert_close(merged_inputs.gram, whole_inputs.gram, rtol=1e-6, atol=1e-6 * size**2)
    torch.testing.assert_close(merged_inputs.magnitude, whole_inputs.magnitude, rtol=1e-6, atol=1e-6 * size)
    torch.testing.assert_close(merged_inputs.mean, whole_inputs.mean, rtol=1e-6, atol=1e-6 * size)
    whole = synthetic.output_statistics(rows, rows / 2, in_mlp=True)
    merged = merge([synthetic.output_statistics(part, part / 2, in_mlp=True) for part in parts if len(part)])
    assert isinstance(merged, OutputStatistics)
    assert merged.tokens == tokens
    for name in ("mean", "square", "magnitude", "activated", "structural"):
        bound = 1e-6 * (size**2 if name == "square" else size)
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), rtol=1e-6, atol=bound)


@given(st.integers(1, 40), st.integers(0, 99), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_packing_is_the_inverse_of_unpacking(size: int, seed: int, dtype: torch.dtype) -> None:
    """A symmetric matrix comes back bit for bit from its upper triangle, which takes half the memory and a row."""
    upper = torch.randn(size, size, generator=seeded(seed)).to(dtype).triu()
    matrix = upper + upper.triu(1).T
    packed = pack_symmetric(matrix)
    assert packed.shape == (size // 2 + 1, size)
    assert packed.dtype == dtype
    assert torch.equal(pack_symmetric(upper), packed)
    restored = unpack_symmetric(packed)
    assert restored.dtype == dtype
    assert torch.equal(restored, matrix)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7])
def test_packed_layout(size: int) -> None:
    """Row k of the rectangle is row k of the triangle, with row I - k reversed before it: files depend on it."""
    matrix = torch.arange(float(size * size)).view(size, size)
    matrix = matrix.triu() + matrix.triu(1).T
    packed = pack_symmetric(matrix)
    for k in range(size // 2 + 1):
        before = [float(matrix[size - k, size - 1 - j]) for j in range(k)]
        assert packed[k].tolist() == before + matrix[k, k:].tolist()
