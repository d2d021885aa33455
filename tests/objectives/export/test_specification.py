"""What is packed is what another reading of the specification unpacks, whatever the codes are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from objectives.export.awq import awq_tensors
from objectives.export.gptq import gptq_tensors
from objectives.export.mlx import mlx_tensors
from objectives.export.reading import read_by_mlx
from objectives.export.specification import SPECIFICATIONS, read_mlx
from quant.scheme import IntWeight, dequantize

Write = Callable[[IntWeight], dict[str, Tensor]]
WRITERS: Mapping[str, Write] = {"gptq": gptq_tensors, "awq": awq_tensors, "mlx": mlx_tensors}


@st.composite
def weights(draw: st.DrawFn, sizes: Sequence[int] = (8, 32, 64)) -> IntWeight:
    """Any codes, zero points and scales that float16 holds."""
    outputs, groups = 8 * draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size, symmetric = draw(st.sampled_from(sizes)), draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    lowest = -8 if symmetric else 0
    scale = torch.randn(outputs, groups, generator=generator).bfloat16()
    zero = torch.randint(0, 16, (outputs, groups), generator=generator).to(torch.int8)
    return IntWeight(
        codes=torch.randint(lowest, lowest + 16, (outputs, size * groups), generator=generator).to(torch.int8),
        scale=torch.where(scale.abs() < 2**-14, 1, scale).to(scale.dtype),
        zero=None if symmetric else zero,
        group_size=size,
        bits=4,
    )


@pytest.mark.parametrize("name", WRITERS)
@settings(deadline=None, derandomize=True, max_examples=40)
@given(weight=weights())
def test_every_code_is_read_as_it_was_written(name: str, weight: IntWeight) -> None:
    """The values are equal in float32, to the last bit: so codes, zero points and scales are."""
    version = "gptq" if weight.zero is None else "gptq_v2"
    config: dict[str, Any] = {"checkpoint_format": version, "group_size": weight.group_size}
    read, _ = SPECIFICATIONS[name]
    values, exact = read(WRITERS[name](weight), config), dequantize(weight)
    if name == "mlx":
        # Its biases are rounded as its scales are, to bfloat16 here, unless codes are around zero.
        steps = (values - exact).abs() / weight.scale.float().abs().repeat_interleave(weight.group_size, 1)
        assert steps.max() <= (15 / 256 if weight.zero is not None else 1e-6 * 16)
    else:
        assert torch.equal(values, exact)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(weight=weights(sizes=(32, 64)))
def test_mlx_reads_what_its_specification_reads(weight: IntWeight) -> None:
    """Where it is installed it is what reads files for the proof: the values are equal in float32, to the last bit."""
    pytest.importorskip("mlx.core")
    tensors, config = mlx_tensors(weight), {"group_size": weight.group_size, "bits": 4}
    assert torch.equal(read_by_mlx(tensors, config) + 0, read_mlx(tensors, config) + 0)


def test_words_are_as_published() -> None:
    """A Linear of which every output has its own code, packed by hand."""
    codes = torch.arange(8).repeat(8, 1).T.to(torch.int8)
    weight = IntWeight(codes=codes, scale=torch.ones(8, 1), zero=torch.full((8, 1), 1), group_size=8, bits=4)
    awq, gptq = awq_tensors(weight), gptq_tensors(weight)
    assert awq["qweight"].tolist() == [[0x75316420]] * 8
    assert gptq["qweight"].tolist() == [[0x11111111 * output for output in range(8)]]
    assert awq["qzeros"].tolist() == gptq["qzeros"].tolist() == [[0x11111111]]
    assert gptq["g_idx"].tolist() == [0] * 8
