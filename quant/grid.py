"""INT4 grids along the inputs of a weight matrix: `quantize` and its inverse `dequantize`.

Responsible for scales, zero points and codes of one matrix, per group of `group_size` inputs or per row. May assume
a finite float32 matrix; who hands one in has checked it. Shape letters: `O` outputs, `I` inputs, `G` groups.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.errors import QuantizationError

BITS = 4
LEVELS = 2**BITS
SCALE_BITS = 16
SCALE_TYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How a row is divided into groups and what each group stores.

    Attributes:
        group_size: Inputs that share a scale; None means one scale per output row.
        symmetric: True for codes -8..7 around zero, False for codes 0..15 with a zero point per group.
        scale_dtype: The 16-bit type the scales are stored in, and rounded to before codes are computed.
    """

    group_size: int | None = 128
    symmetric: bool = True
    scale_dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        problems = []
        if self.group_size is not None and self.group_size < 1:
            problems.append(f"group size {self.group_size} is not a positive number of inputs; use 32, 64, 128 or 256")
        if self.scale_dtype not in SCALE_TYPES:
            problems.append(f"scales are stored in bfloat16 or float16, not in {self.scale_dtype}")
        if problems:
            raise QuantizationError("; ".join(problems))

    def groups(self, inputs: int) -> int:
        """Groups per row, the last partial one included."""
        return 1 if self.group_size is None else -(-inputs // self.group_size)


@dataclass(frozen=True, kw_only=True)
class IntWeight:
    """A matrix on an INT4 grid: the value of a code is `(code - zero) * scale`.

    Attributes:
        codes: int8 `[O, I]`, -8..7 on a symmetric grid, 0..15 on an asymmetric one.
        scale: `[O, G]` in the grid's 16-bit type, positive.
        zero: int8 `[O, G]`, 0..15; None on a symmetric grid.
        group_size: Inputs per group; the last group may be partial.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    group_size: int

    def cpu(self) -> "IntWeight":
        """The same in the memory of the processor."""
        zero = None if self.zero is None else self.zero.cpu()
        return IntWeight(codes=self.codes.cpu(), scale=self.scale.cpu(), zero=zero, group_size=self.group_size)


def scale_type(dtype: torch.dtype) -> torch.dtype:
    """The 16-bit type that scales of a model of `dtype` are stored in: its own, or float16 for wider ones."""
    return dtype if dtype in SCALE_TYPES else torch.float16


def quantize(weight: Tensor, grid: Grid) -> IntWeight:
    """Round a float32 matrix `[O, I]` to the nearest values of its grid (DESIGN 3, `Q`); O may be 0."""
    inputs = weight.shape[1]
    groups = _grouped(weight, grid)
    scale, zero = group_scales(groups, grid)
    codes = encode_(groups.clone(), scale, zero).to(torch.int8)
    # The codes of an all-zero group are zero under any scale; the one that is stored is 1.
    scale = torch.where(groups.any(-1, keepdim=True), scale, 1.0)
    return IntWeight(
        codes=codes.flatten(1)[:, :inputs].contiguous(),
        scale=scale.squeeze(-1).to(grid.scale_dtype),
        zero=None if zero is None else zero.squeeze(-1).to(torch.int8),
        group_size=groups.shape[-1],
    )


def dequantize(weight: IntWeight) -> Tensor:
    """The exact values, float32 `[O, I]`."""
    inputs = weight.codes.shape[1]

    def spread(per_group: Tensor) -> Tensor:
        return per_group.float().repeat_interleave(weight.group_size, dim=1)[:, :inputs]

    codes = weight.codes.float()
    if weight.zero is not None:
        codes = codes - spread(weight.zero)
    return codes * spread(weight.scale)


def loaded(weight: IntWeight) -> Tensor:
    """The values as whatever unpacks the codes has them, `[O, I]` in the type of the scales."""
    return dequantize(weight).to(weight.scale.dtype)


def round_to_grid(weight: Tensor, grid: Grid) -> Tensor:
    """`dequantize(quantize(weight, grid))` in one go: float32 `[O, I]`, without materialising the codes."""
    return round_to_grid_(weight.clone(), grid)


def round_to_grid_(weight: Tensor, grid: Grid) -> Tensor:
    """`round_to_grid` that may write over `weight`: the innermost loop of a search is bound by memory traffic."""
    inputs = weight.shape[1]
    groups = _grouped(weight, grid)
    scale, zero = group_scales(groups, grid)
    codes = encode_(groups, scale, zero)
    if zero is not None:
        codes.sub_(zero)
    return codes.mul_(scale).flatten(1)[:, :inputs]


def effective_weight(weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """`W_eff = Q(W S) / S` `[O, I]`: what a runtime computes that divides its inputs by S `[I]`.

    Leaving out the division is the known catastrophic bug of scaled quantization (perplexity in the millions).
    """
    return round_to_grid_(weight * scale, grid).div_(scale)


def group_scales(groups: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of each group of `groups` `[O, G, group]`, as float32 `[O, G, 1]`.

    A scale is already rounded to its stored type. One that this type cannot hold is clamped to the smallest or
    largest it can, so that no weight is ever divided by zero or infinity.
    """
    if grid.symmetric:
        raw = groups.abs().amax(-1, keepdim=True).div_(LEVELS // 2 - 1)
        return _stored(raw, grid), None
    low = groups.amin(-1, keepdim=True).clamp_(max=0)
    high = groups.amax(-1, keepdim=True).clamp_(min=0)
    # Halved before the difference and doubled after it: two huge values of opposite sign must not overflow.
    scale = _stored((high / 2 - low / 2).div_(LEVELS - 1).mul_(2), grid)
    return scale, low.neg_().div_(scale).round_().clamp_(0, LEVELS - 1)


def encode_(groups: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Nearest codes of `groups`, as whole float32 numbers, written over `groups`."""
    groups.div_(scale).round_()
    if zero is None:
        return groups.clamp_(-LEVELS // 2, LEVELS // 2 - 1)
    return groups.add_(zero).clamp_(0, LEVELS - 1)


def _grouped(weight: Tensor, grid: Grid) -> Tensor:
    outputs, inputs = weight.shape
    size = grid.group_size or inputs
    padding = -inputs % size
    if padding:
        weight = torch.nn.functional.pad(weight, (0, padding))
    # Spelled out: of a matrix without rows, nothing can be inferred.
    return weight.view(outputs, weight.shape[1] // size, size)


def _stored(scale: Tensor, grid: Grid) -> Tensor:
    """`scale`, which is written over, in the precision it is stored in."""
    limits = torch.finfo(grid.scale_dtype)
    # Subnormal scales are fine in float16, but a float32 subnormal may be flushed to zero by the processor.
    smallest = max(limits.tiny * limits.eps, torch.finfo(torch.float32).tiny)
    return scale.clamp_(smallest, limits.max).to(grid.scale_dtype).float()
