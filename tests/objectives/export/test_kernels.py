"""Linears that a runtime keeps packed are equal where its kernels compute with the codes of the files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from objectives.export import kernels
from objectives.export.awq import awq_tensors
from objectives.export.digests import loaded_digests
from objectives.export.gptq import gptq_tensors
from objectives.export.kernels import packed_weights
from quant.scheme import IntWeight, dequantize

WRITERS: dict[str, Callable[[IntWeight], dict[str, Tensor]]] = {"gptq": gptq_tensors, "awq": awq_tensors}
# Float16 holds the last one as another number.
BIASES = torch.tensor([*([1000.0] * 15), 3e-7], dtype=torch.bfloat16)


class Packed(nn.Module):
    """A Linear without a weight, whose kernel adds `rounding` to every value."""

    def __init__(self, weight: Tensor, rounding: Tensor) -> None:
        super().__init__()
        self.register_buffer("qweight", (weight + rounding).bfloat16())
        self.register_buffer("bias", BIASES.half())

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = inputs @ self.qweight.T
        return outputs if self.bias is None else outputs + self.bias


class Runtime(nn.Module):
    """A model with one such Linear."""

    dtype, device = torch.bfloat16, torch.device("cpu")

    def __init__(self, linear: Packed) -> None:
        super().__init__()
        self.linear = linear


@pytest.fixture
def weight() -> IntWeight:
    generator = torch.Generator().manual_seed(1)
    return IntWeight(
        codes=torch.randint(0, 16, (16, 64), generator=generator).to(torch.int8),
        scale=torch.rand(16, 2, generator=generator).add(0.5).bfloat16(),
        zero=torch.randint(0, 16, (16, 2), generator=generator).to(torch.int8),
        group_size=32,
        bits=4,
    )


@pytest.fixture(params=WRITERS)
def directory(request: Any, weight: IntWeight, tmp_path: Path) -> Path:
    """A directory of either format, with the one Linear."""
    tensors = {f"linear.{part}": tensor.contiguous() for part, tensor in WRITERS[request.param](weight).items()}
    save_file({**tensors, "linear.bias": BIASES}, tmp_path / "model.safetensors")
    config = {"quant_method": request.param, "checkpoint_format": "gptq_v2"}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    return tmp_path


def read(runtime: Runtime, directory: Path) -> Tensor:
    tensors = dict(packed_weights(runtime, directory, without=()))
    assert set(tensors) == {"linear.weight", "linear.bias"}
    return tensors["linear.weight"]


def test_a_kernel_that_rounds_in_its_own_way_has_the_codes_of_the_files(
    weight: IntWeight, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to half a step; its bias, which would hide that, is taken away; inputs are looked at piece by piece."""
    monkeypatch.setattr(kernels, "INPUTS", 24)
    exact = dequantize(weight)
    step = weight.scale.float().repeat_interleave(32, 1)
    runtime = Runtime(Packed(exact, 0.4 * step))
    assert torch.equal(read(runtime, directory), exact)
    assert torch.equal(runtime.linear.bias, BIASES.half())
    digests = loaded_digests(runtime, directory, torch.bfloat16)
    assert set(digests) == {"linear.weight", "linear.bias"}


def test_one_code_that_a_kernel_computes_with_and_the_files_have_not_shows(weight: IntWeight, directory: Path) -> None:
    """What the kernel computes is then what was loaded."""
    exact, apart = dequantize(weight), torch.zeros(16, 64)
    apart[3, 5] = weight.scale[3, 0]
    found = read(Runtime(Packed(exact, apart)), directory)
    assert (found - exact).abs().argmax() == 3 * 64 + 5
    assert not torch.equal(found, exact)


def test_biases_are_those_of_the_files_as_far_as_float16_holds_them(weight: IntWeight, directory: Path) -> None:
    """And another one is what was loaded."""
    runtime = Runtime(Packed(dequantize(weight), torch.zeros(16, 64)))

    def bias() -> Tensor:
        return dict(packed_weights(runtime, directory, without=()))["linear.bias"]

    assert torch.equal(bias(), BIASES)
    runtime.linear.bias[3] = 1008
    assert bias()[3] == 1008


def test_a_kernel_that_puts_out_no_numbers_has_no_codes(weight: IntWeight, directory: Path) -> None:
    """Nothing that is not a number is near anything."""
    apart = torch.zeros(16, 64)
    apart[0, 0] = torch.nan
    assert read(Runtime(Packed(dequantize(weight), apart)), directory).isnan().any()


def test_linears_that_have_weights_are_not_run(weight: IntWeight, directory: Path) -> None:
    """Nor are directories of formats that packages unpack as they load them."""
    runtime = Runtime(Packed(dequantize(weight), torch.zeros(16, 64)))
    assert list(packed_weights(runtime, directory, without={"linear.weight"})) == []
    for config in ({}, {"quantization_config": None}, {"quantization_config": {"quant_method": "compressed-tensors"}}):
        (directory / "config.json").write_text(json.dumps(config))
        assert list(packed_weights(runtime, directory, without=())) == []
