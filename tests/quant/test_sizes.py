"""Counted bits are those of the tensors that a quantized matrix consists of, and of their bytes when packed."""

import pytest
import torch
from torch import Tensor

from quant.methods import METHODS
from quant.scheme import Scheme, quantize
from quant.setting import Setting
from quant.sizes import input_scale_bits, matrix_bits
from tests.quant.synthetic import seeded


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 1, 8, 10, 64])
def test_matrix_bits_are_those_of_its_tensors(symmetric: bool, group_size: int | None) -> None:
    """Four bits a code and a zero point, sixteen a scale, for as many of them as rounding makes."""
    scheme = Scheme(group_size=group_size, symmetric=symmetric)
    packed = quantize(torch.ones(3, 24), scheme)
    zeros = 0 if packed.zero is None else packed.zero.numel()
    assert matrix_bits(3, 24, scheme).total == 4 * packed.codes.numel() + 16 * packed.scale.numel() + 4 * zeros


@pytest.mark.parametrize("method", METHODS)
def test_input_scale_takes_memory_only_where_it_stays(method: str) -> None:
    """A scale per column costs sixteen bits when every Linear has its own, and nothing when it folds away."""
    own = input_scale_bits(24, Setting(method=method, scales="linear"))
    scaled = method in ("awq", "praq-real", "gw-awq", "gw-praq", "gwh-praq-v1", "gwh-praq-v2")
    assert own == (16 * 24 if scaled else 0)
    assert input_scale_bits(24, Setting(method=method, scales="foldable")) == 0


def packed_bytes(weight: Tensor, setting: Setting, kept: Tensor) -> int:
    """Bytes of what a file would hold of `weight` `[O, I]`: nibbles two to a byte, scales, zero points, `kept` rows."""

    def nibbles(codes: Tensor) -> Tensor:
        pairs = codes.flatten().view(torch.uint8).view(-1, 2) & 0xF
        return pairs[:, 0] | pairs[:, 1] << 4

    stored = [weight[kept].bfloat16()]
    if kept.all():
        return stored[0].numel() * stored[0].itemsize
    rounded = quantize(weight[~kept].float(), setting.scheme(weight.dtype))
    stored += [nibbles(rounded.codes), rounded.scale]
    if rounded.zero is not None:
        stored.append(nibbles(rounded.zero))
    return sum(tensor.numel() * tensor.itemsize for tensor in stored)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("keep_ratio", [0, 0.25, 0.3, 0.5, 1])
@pytest.mark.parametrize("method", METHODS)
def test_matrix_bits_are_the_bytes_of_a_packed_file(method: str, keep_ratio: float, symmetric: bool) -> None:
    """What is counted for a method is what its codes, scales, zero points and kept rows take when they are packed."""
    setting = Setting(method=method, keep_ratio=keep_ratio, symmetric=symmetric, group_size=8)
    weight = torch.randn(40, 48, generator=seeded(0)).bfloat16()
    count = setting.kept_rows(40)
    assert count == (40 * keep_ratio if METHODS[method].keeps_rows else 0)
    kept = torch.arange(40) < count
    bits = matrix_bits(40, 48, setting.scheme(weight.dtype), count).total
    assert bits == 8 * packed_bytes(weight, setting, kept)
