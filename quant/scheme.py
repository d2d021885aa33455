"""How a weight matrix is stored as whole numbers: `quantize` to the nearest and its inverse `dequantize`.

Responsible for scales, zero points and codes of one matrix, per group of `group_size` inputs or per row. May assume
a finite float32 matrix; who hands one in has checked it. Shape letters: `O` outputs, `I` inputs, `G` groups.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quant.errors import QuantizationError

FEWEST_BITS, MOST_BITS = 2, 8
SCALE_BITS = 16
SCALE_TYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Says how many bits a weight has, and what a group of them stores besides.

    Attributes:
        bits: Of a code, 2 to 8.
        group_size: Inputs that share a scale; None means one scale per output row.
        symmetric: True for codes around zero, -8..7 at 4 bits; False for codes from zero on, 0..15, with a zero point
            per group.
        scale_dtype: The 16-bit type the scales are stored in, and rounded to before codes are computed.

    Raises:
        QuantizationError: With one line naming everything that cannot be stored.
    """

    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = True
    scale_dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        problems = []
        if self.bits not in range(FEWEST_BITS, MOST_BITS + 1):
            problems.append(f"codes of {self.bits} bits are not among {FEWEST_BITS}..{MOST_BITS}")
        if self.group_size is not None and self.group_size < 1:
            problems.append(f"group size {self.group_size} is not a positive number of inputs; use 32, 64, 128 or 256")
        if self.scale_dtype not in SCALE_TYPES:
            problems.append(f"scales are stored in bfloat16 or float16, not in {self.scale_dtype}")
        if problems:
            raise QuantizationError("; ".join(problems))

    @property
    def lowest(self) -> int:
        """The least code."""
        return -(1 << self.bits - 1) if self.symmetric else 0

    @property
    def highest(self) -> int:
        """The greatest code."""
        return self.lowest + (1 << self.bits) - 1

    def groups(self, inputs: int) -> int:
        """Count the groups of a row, the last partial one included."""
        return 1 if self.group_size is None else -(-inputs // self.group_size)

    def code_bits(self, outputs: int, inputs: int) -> int:
        """Count the bits of the codes of a matrix."""
        return self.bits * outputs * inputs

    def scale_bits(self, outputs: int, inputs: int) -> int:
        """Count the bits of scales and zero points of a matrix."""
        return outputs * self.groups(inputs) * (SCALE_BITS + (0 if self.symmetric else self.bits))


@dataclass(frozen=True, kw_only=True)
class IntWeight:
    """Holds a matrix as whole numbers: the value of a code is `(code - zero) * scale`.

    Attributes:
        codes: `[O, I]`, between the scheme's lowest and highest; int8, or uint8 where 8 bits count from zero.
        scale: `[O, G]` in the scheme's 16-bit type, positive.
        zero: `[O, G]`, of the type of the codes; None on a symmetric scheme.
        group_size: Inputs per group; the last group may be partial.
        bits: Of a code.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    group_size: int
    bits: int

    def cpu(self) -> "IntWeight":
        """The same in the memory of the processor."""
        zero = None if self.zero is None else self.zero.cpu()
        return replace(self, codes=self.codes.cpu(), scale=self.scale.cpu(), zero=zero)


def scale_type(dtype: torch.dtype) -> torch.dtype:
    """The 16-bit type that scales of a model of `dtype` are stored in: its own, or float16 for wider ones."""
    return dtype if dtype in SCALE_TYPES else torch.float16


def quantize(weight: Tensor, scheme: Scheme) -> IntWeight:
    """Round a float32 matrix `[O, I]` to the nearest values of its scheme (docs/methods.md, Q); O may be 0."""
    inputs = weight.shape[1]
    groups = _grouped(weight, scheme)
    scale, zero = group_scales(groups, scheme)
    stored = torch.int8 if scheme.highest <= torch.iinfo(torch.int8).max else torch.uint8
    codes = encode_(groups.clone(), scale, zero, scheme).to(stored)
    # The codes of an all-zero group are zero under any scale; the one that is stored is 1.
    scale = torch.where(groups.any(-1, keepdim=True), scale, 1.0)
    return IntWeight(
        codes=codes.flatten(1)[:, :inputs].contiguous(),
        scale=scale.squeeze(-1).to(scheme.scale_dtype),
        zero=None if zero is None else zero.squeeze(-1).to(stored),
        group_size=groups.shape[-1],
        bits=scheme.bits,
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


def round_nearest(weight: Tensor, scheme: Scheme) -> Tensor:
    """`dequantize(quantize(weight, scheme))` in one go: float32 `[O, I]`, without materialising the codes."""
    return round_nearest_(weight.clone(), scheme)


def round_nearest_(weight: Tensor, scheme: Scheme) -> Tensor:
    """`round_nearest` that may write over `weight`: the innermost loop of a search is bound by memory traffic."""
    inputs = weight.shape[1]
    groups = _grouped(weight, scheme)
    scale, zero = group_scales(groups, scheme)
    codes = encode_(groups, scale, zero, scheme)
    if zero is not None:
        codes.sub_(zero)
    return codes.mul_(scale).flatten(1)[:, :inputs]


def effective_weight(weight: Tensor, scale: Tensor, scheme: Scheme) -> Tensor:
    """`W_eff = Q(W S) / S` `[O, I]`: what a runtime computes that divides its inputs by S `[I]`.

    Leaving out the division is the known catastrophic bug of scaled quantization (perplexity in the millions).
    """
    return round_nearest_(weight * scale, scheme).div_(scale)


def undivided(weight: IntWeight, scale: Tensor) -> Tensor:
    """`W_eff` `[O, I]` of codes of `W S`, float32: what `effective_weight` rounds and divides in one go."""
    return dequantize(weight).div_(scale)


def group_scales(groups: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of each group of `groups` `[O, G, group]`, as float32 `[O, G, 1]`.

    A scale is already rounded to its stored type. One that this type cannot hold is clamped to the smallest or
    largest it can, so that no weight is ever divided by zero or infinity.
    """
    if scheme.symmetric:
        raw = groups.abs().amax(-1, keepdim=True).div_(scheme.highest)
        return _stored(raw, scheme), None
    low = groups.amin(-1, keepdim=True).clamp_(max=0)
    high = groups.amax(-1, keepdim=True).clamp_(min=0)
    # Halved before the difference and doubled after it: two huge values of opposite sign must not overflow.
    scale = _stored((high / 2 - low / 2).div_(scheme.highest).mul_(2), scheme)
    return scale, low.neg_().div_(scale).round_().clamp_(0, scheme.highest)


def encode_(groups: Tensor, scale: Tensor, zero: Tensor | None, scheme: Scheme) -> Tensor:
    """Nearest codes of `groups`, as whole float32 numbers, written over `groups`."""
    groups.div_(scale).round_()
    if zero is not None:
        groups.add_(zero)
    return groups.clamp_(scheme.lowest, scheme.highest)


def _grouped(weight: Tensor, scheme: Scheme) -> Tensor:
    outputs, inputs = weight.shape
    size = scheme.group_size or inputs
    padding = -inputs % size
    if padding:
        weight = torch.nn.functional.pad(weight, (0, padding))
    # Spelled out: of a matrix without rows, nothing can be inferred.
    return weight.view(outputs, weight.shape[1] // size, size)


def _stored(scale: Tensor, scheme: Scheme) -> Tensor:
    """`scale`, which is written over, in the precision it is stored in."""
    limits = torch.finfo(scheme.scale_dtype)
    # Subnormal scales are fine in float16, but a float32 subnormal may be flushed to zero by the processor.
    smallest = max(limits.tiny * limits.eps, torch.finfo(torch.float32).tiny)
    return scale.clamp_(smallest, limits.max).to(scheme.scale_dtype).float()
