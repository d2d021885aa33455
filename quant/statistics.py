"""Sufficient statistics of calibration: what every method needs to know of a Linear's inputs and outputs.

Responsible for accumulating means over tokens, which docs/methods.md has the formulas on, and for merging the means of
consecutive token runs. May assume rows without padding. Sums are float32 within a batch and float64 across batches.
Shape letters: `O` outputs, `I` inputs, `N` tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

from quant.matmul import gram_sum


@dataclass(frozen=True, kw_only=True)
class InputStatistics:
    """Means over `tokens` input rows `x` that one or more Linears share.

    Attributes:
        tokens: Number of rows averaged over.
        gram: `E[x xᵀ]`, float32 `[I, I]`, symmetric.
        magnitude: `E|x|`, float32 `[I]`.
        mean: `E[x]`, float32 `[I]`.
    """

    tokens: int
    gram: Tensor
    magnitude: Tensor
    mean: Tensor


@dataclass(frozen=True, kw_only=True)
class OutputStatistics:
    """Means over `tokens` output rows `z = W x + b` of one Linear; every tensor is float32 `[O]`.

    Attributes:
        tokens: Number of rows averaged over.
        mean: `E[z]`.
        square: `E[z²]`.
        magnitude: `E|z|`.
        activated: `E|act(z)|` with the block's activation; equals `magnitude` for attention Linears.
        structural: `E|·|` of what the block computes from z: `act(z)` where an activation follows, the gated product
            for `up`, z itself elsewhere.
    """

    tokens: int
    mean: Tensor
    square: Tensor
    magnitude: Tensor
    activated: Tensor
    structural: Tensor


Statistics = TypeVar("Statistics", InputStatistics, OutputStatistics)


class InputSums:
    """Accumulates `InputStatistics` on one device; holds one float64 `[I, I]` matrix and two `[I]` vectors."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self.tokens = 0
        self.gram = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        self.vectors = torch.zeros(2, inputs, dtype=torch.float64, device=device)

    def add(self, x: Tensor) -> None:
        """Add the rows of `x` `[N, I]`."""
        self.tokens += x.shape[0]
        # Converted before it is added: sums of mixed types are not vectorised.
        self.gram += gram_sum(x).double()
        x = x.float()
        self.vectors += torch.stack([x.abs().sum(0), x.sum(0)])

    def means(self) -> InputStatistics:
        magnitude, mean = _mean(self.vectors, self.tokens)
        return InputStatistics(tokens=self.tokens, gram=_mean(self.gram, self.tokens), magnitude=magnitude, mean=mean)


class OutputSums:
    """Accumulates what `OutputStatistics` needs of one Linear's own outputs; holds four `[O]` float64 vectors."""

    def __init__(self, outputs: int, device: torch.device) -> None:
        self.tokens = 0
        self.vectors = torch.zeros(4, outputs, dtype=torch.float64, device=device)

    def add(self, z: Tensor, activation: Callable[[Tensor], Tensor] | None) -> None:
        """Add the rows of `z` `[N, O]`; without an activation `activated` repeats the plain magnitude."""
        self.tokens += z.shape[0]
        z = z.float()
        magnitude = z.abs().sum(0)
        activated = magnitude if activation is None else activation(z).abs().sum(0)
        self.vectors += torch.stack([z.sum(0), z.square().sum(0), magnitude, activated])

    def means(self) -> dict[str, Tensor]:
        """Return `mean`, `square`, `magnitude` and `activated`, float32 `[O]` each."""
        return dict(zip(("mean", "square", "magnitude", "activated"), _mean(self.vectors, self.tokens), strict=True))


def merge(parts: Sequence[Statistics]) -> Statistics:
    """Merge the statistics of different tokens, weighted by their numbers, in float64."""
    first, *following = parts
    tokens = sum(part.tokens for part in parts)
    if not following or not tokens:
        return first
    merged: dict[str, Tensor] = {}
    for field in fields(first):
        if field.name == "tokens":
            continue
        total = getattr(first, field.name).double() * (first.tokens / tokens)
        for part in following:
            total.add_(getattr(part, field.name).double(), alpha=part.tokens / tokens)
        merged[field.name] = total.float()
    return type(first)(tokens=tokens, **merged)


def shrunk(own: Statistics, pooled: Statistics, share: float) -> Statistics:
    """Return `share` of statistics and the rest of pooled ones, in float32.

    The number of tokens stays that of `own`: it says how often the Linear is used (docs/methods.md, mixtures of
    experts).
    """
    means = {
        field.name: torch.lerp(getattr(pooled, field.name), getattr(own, field.name), share)
        for field in fields(own)
        if field.name != "tokens"
    }
    return type(own)(tokens=own.tokens, **means)


def pack_symmetric(matrix: Tensor) -> Tensor:
    """Pack the upper triangle of a symmetric `[I, I]` matrix into a rectangle `[I // 2 + 1, I]`.

    Row k of the triangle has I - k entries and row I - k has k: side by side they fill one row of the rectangle.
    """
    size = matrix.shape[0]
    half = size // 2
    packed = matrix[: half + 1].triu()
    packed[1:] += matrix[size - half :].flip(0, 1).tril()
    return packed


def unpack_symmetric(packed: Tensor) -> Tensor:
    """Unpack what `pack_symmetric` packed."""
    size = packed.shape[1]
    half = size // 2
    upper = packed.new_zeros(size, size)
    upper[size - half :] = packed[1:].tril().flip(0, 1)
    upper[: half + 1] = packed.triu()
    return upper + upper.triu(1).T


def _mean(sums: Tensor, tokens: int) -> Tensor:
    return (sums / max(tokens, 1)).float()
