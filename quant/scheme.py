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
        full_range: Of a symmetric scheme: the weight of largest magnitude of a group takes the lowest code, whatever
            its sign is, so that its scale is negative where that weight is positive; False gives it the code of the
            largest magnitude that both signs have.
        scale_dtype: The 16-bit type the scales are stored in, and rounded to before codes are computed.

    Raises:
        QuantizationError: With one line naming everything that cannot be stored.
    """

    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = True
    full_range: bool = False
    scale_dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        problems = []
        if self.bits not in range(FEWEST_BITS, MOST_BITS + 1):
            problems.append(f"codes of {self.bits} bits are not among {FEWEST_BITS}..{MOST_BITS}")
        if self.group_size is not None and self.group_size < 1:
            problems.append(f"group size {self.group_size} is not a positive number of inputs; use 32, 64, 128 or 256")
        if self.full_range and not self.symmetric:
            problems.append("a scheme with zero points uses its full range as it is; full_range is for symmetric ones")
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
        scale: `[O, G]` in the scheme's 16-bit type; not zero, and negative on full-range schemes alone.
        zero: `[O, G]`, of the type of the codes; None on a symmetric scheme.
        group_size: Inputs per group; the last group may be partial.
        bits: Of a code.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    group_size: int
    bits: int

    def to(self, device: torch.device) -> "IntWeight":
        """The same on a device."""
        zero = None if self.zero is None else self.zero.to(device)
        return replace(self, codes=self.codes.to(device), scale=self.scale.to(device), zero=zero)

    def cpu(self) -> "IntWeight":
        """The same in the memory of the processor."""
        return self.to(torch.device("cpu"))


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Holds what the groups of a matrix are stored with: a value of a group is `(code - zero) * scale`.

    Attributes:
        scale: float32 `[O, G, 1]`, not zero, already rounded to the type it is stored in.
        zero: Whole float32 numbers `[O, G, 1]`; None on a symmetric scheme.
    """

    scale: Tensor
    zero: Tensor | None


def scale_type(dtype: torch.dtype) -> torch.dtype:
    """The 16-bit type that scales of a model of `dtype` are stored in: its own, or float16 for wider ones."""
    return dtype if dtype in SCALE_TYPES else torch.float16


def quantize(weight: Tensor, scheme: Scheme, ranges: Ranges | None = None) -> IntWeight:
    """Round a float32 matrix `[O, I]` to the nearest values of its scheme (docs/methods.md, Q); O may be 0.

    Args:
        weight: The matrix.
        scheme: What its values can be.
        ranges: Of its groups; None for those that hold every weight.
    """
    groups = grouped(weight, scheme)
    ranges = ranges or group_ranges(groups, scheme)
    codes = encode(groups, ranges, scheme).flatten(1)[:, : weight.shape[1]]
    return stored(codes, ranges, groups.shape[-1], scheme)


def stored(codes: Tensor, ranges: Ranges, group_size: int, scheme: Scheme) -> IntWeight:
    """Pack whole float32 codes `[O, I]` and the ranges of their groups into the types that they are stored in."""
    dtype = torch.int8 if scheme.highest <= torch.iinfo(torch.int8).max else torch.uint8
    return IntWeight(
        codes=codes.to(dtype).contiguous(),
        scale=ranges.scale.squeeze(-1).to(scheme.scale_dtype),
        zero=None if ranges.zero is None else ranges.zero.squeeze(-1).to(dtype),
        group_size=group_size,
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
    groups = grouped(weight, scheme)
    ranges = group_ranges(groups, scheme)
    return decode_(encode_(groups, ranges, scheme), ranges).flatten(1)[:, : weight.shape[1]]


def effective_weight(weight: Tensor, scale: Tensor, scheme: Scheme) -> Tensor:
    """`W_eff = Q(W S) / S` `[O, I]`: what a runtime computes that divides its inputs by S `[I]`.

    Leaving out the division is the known catastrophic bug of scaled quantization (perplexity in the millions).
    """
    return round_nearest_(weight * scale, scheme).div_(scale)


def undivided(weight: IntWeight, scale: Tensor) -> Tensor:
    """`W_eff` `[O, I]` of codes of `W S`, float32: what `effective_weight` rounds and divides in one go."""
    return dequantize(weight).div_(scale)


def group_ranges(groups: Tensor, scheme: Scheme) -> Ranges:
    """Find the ranges that hold every weight of each group of `groups` `[O, G, group]`.

    A scale is already rounded to its stored type. One that this type cannot hold is clamped to the smallest or
    largest it can, so that no weight is ever divided by zero or infinity. That of an all-zero group is 1.
    """
    if scheme.full_range:
        # `aminmax` reads once, and takes five times as long on a processor.
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        return Ranges(scale=_group_scale(torch.where(high > -low, high, low) / scheme.lowest, scheme), zero=None)
    if scheme.symmetric:
        raw = groups.abs().amax(-1, keepdim=True).div_(scheme.highest)
        return Ranges(scale=_group_scale(raw, scheme), zero=None)
    low = groups.amin(-1, keepdim=True).clamp_(max=0)
    high = groups.amax(-1, keepdim=True).clamp_(min=0)
    # Halved before the difference and doubled after it: two huge values of opposite sign must not overflow.
    raw = (high / 2 - low / 2).div_(scheme.highest).mul_(2)
    scale = _group_scale(raw, scheme)
    return Ranges(scale=scale, zero=low.neg_().div_(scale).round_().clamp_(0, scheme.highest))


def encode(groups: Tensor, ranges: Ranges, scheme: Scheme) -> Tensor:
    """Find the nearest codes of `groups`, as whole float32 numbers."""
    return _codes_(groups / ranges.scale, ranges, scheme)


def encode_(groups: Tensor, ranges: Ranges, scheme: Scheme) -> Tensor:
    """Write the nearest codes of `groups` over them, as whole float32 numbers."""
    return _codes_(groups.div_(ranges.scale), ranges, scheme)


def _codes_(divided: Tensor, ranges: Ranges, scheme: Scheme) -> Tensor:
    divided.round_()
    if ranges.zero is not None:
        divided.add_(ranges.zero)
    return divided.clamp_(scheme.lowest, scheme.highest)


def decode_(codes: Tensor, ranges: Ranges) -> Tensor:
    """Write the values of grouped codes over them."""
    if ranges.zero is not None:
        codes.sub_(ranges.zero)
    return codes.mul_(ranges.scale)


def grouped(weight: Tensor, scheme: Scheme) -> Tensor:
    """View a matrix `[O, I]` as groups `[O, G, group]`; a partial last group is filled with zeros in a copy."""
    outputs, inputs = weight.shape
    size = scheme.group_size or inputs
    padding = -inputs % size
    if padding:
        weight = torch.nn.functional.pad(weight, (0, padding))
    # Spelled out: of a matrix without rows, nothing can be inferred.
    return weight.view(outputs, weight.shape[1] // size, size)


def stored_scale(scale: Tensor, scheme: Scheme) -> Tensor:
    """Round float32 scales to the precision they are stored in, and to the smallest and largest that this holds."""
    limits = torch.finfo(scheme.scale_dtype)
    # Subnormal scales are fine in float16, but a float32 subnormal may be flushed to zero by the processor.
    smallest = max(limits.tiny * limits.eps, torch.finfo(torch.float32).tiny)
    stored_size = scale.abs().clamp(smallest, limits.max).to(scheme.scale_dtype).float()
    return stored_size.copysign_(scale)


def _group_scale(raw: Tensor, scheme: Scheme) -> Tensor:
    """The codes of an all-zero group are zero under any scale; the one that is stored is 1."""
    return torch.where(raw == 0, 1.0, stored_scale(raw, scheme))
