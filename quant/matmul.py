"""Matrix products of bfloat16 values at the device's full rate.

Responsible for the two products that dominate the run time, Gram matrices and quadratic losses, and for the size of
the pieces in which weights are tried. May assume nothing about the device: where it has no fast bfloat16 product,
float32 is used and the result is the same or better.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

# Weights tried at a time: what a core's cache holds of them, or what keeps a GPU busy without filling its memory.
CPU_PIECE, GPU_PIECE = 2**18, 2**23


def piece_elements(device_type: str) -> int:
    """Return how many weights are tried at a time on this kind of device."""
    return CPU_PIECE if device_type == "cpu" else GPU_PIECE


@cache
def fast_dtype(device_type: str) -> torch.dtype:
    """Return the operand type in which this kind of device multiplies matrices fastest without losing range."""
    if device_type == "cuda":
        return torch.bfloat16
    if device_type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return torch.bfloat16 if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else torch.float32
    return torch.float32


def gram_sum(x: Tensor) -> Tensor:
    """Accumulate `xᵀ x` in float32, `[I, I]`, for rows `x` `[N, I]`.

    A product of two bfloat16 numbers is exact in float32, so rows that already are bfloat16 lose nothing by being
    multiplied as such; rows of any other type are multiplied in float32.
    """
    if x.dtype != torch.bfloat16 or fast_dtype(x.device.type) != torch.bfloat16:
        x = x.float()
        return x.T @ x
    if x.device.type == "cuda":
        return torch.mm(x.T, x, out_dtype=torch.float32)
    x = x.float()
    with _bfloat16_operands():
        return x.T @ x


@contextmanager
def _bfloat16_operands() -> Iterator[None]:
    """Let oneDNN read float32 operands as bfloat16 (the result stays float32)."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
