"""Counted bits are those of the tensors that a quantized matrix consists of."""

import pytest
import torch

from quant.grid import Grid, quantize
from quant.methods import METHODS, Setting
from quant.sizes import input_scale_bits, matrix_bits


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 1, 8, 10, 64])
def test_matrix_bits_are_those_of_its_tensors(symmetric: bool, group_size: int | None) -> None:
    """Four bits a code and a zero point, sixteen a scale, for as many of them as rounding makes."""
    grid = Grid(group_size=group_size, symmetric=symmetric)
    packed = quantize(torch.ones(3, 24), grid)
    zeros = 0 if packed.zero is None else packed.zero.numel()
    assert matrix_bits(3, 24, grid) == 4 * packed.codes.numel() + 16 * packed.scale.numel() + 4 * zeros


@pytest.mark.parametrize("method", METHODS)
def test_input_scale_takes_memory_only_where_it_stays(method: str) -> None:
    """A scale per column costs sixteen bits when every Linear has its own, and nothing when it folds away."""
    own = input_scale_bits(24, Setting(method=method, scales="linear"))
    assert own == (0 if method == "rtn" else 16 * 24)
    assert input_scale_bits(24, Setting(method=method, scales="foldable")) == 0
