"""GPTQ: weights are rounded one input after the other, and what an error does is taken back by those that follow.

Responsible for the blocked form of GPTQ (Frantar et al. 2022, arXiv:2210.17323, algorithm 1) on ranges that are given,
so that the stored layout does not change; docs/methods.md, rounding. May assume finite float32 weights. Shape letters:
`O` outputs, `I` inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quant.rounding.inputs import ScaledInputs
from quant.rounding.matrix import Matrix, Rounded
from quant.scheme import Ranges, Scheme, encode_, stored

BLOCK = 64
"""Inputs whose errors are spread together over those that follow: fewer passes over the rest of the matrix."""
# What the damping is multiplied with until the factorisation holds, and where that is given up: there the damped matrix
# is a multiple of the identity to all digits, whose factor always exists.
STRONGER, STRONGEST = 10.0, 1e12


def gptq(matrices: Sequence[Matrix], scheme: Scheme, inputs: ScaledInputs, setting: Any) -> list[Rounded]:
    """Round matrices with common inputs, in the order of falling `G'_jj`; each row has the codes it has alone."""
    order = inputs.gram.diagonal().argsort(descending=True, stable=True)
    factor, damping = damped_factor(inputs.gram[order][:, order], setting.damping)
    size = scheme.group_size or len(order)
    columns = [_columns(matrix, order, size) for matrix in matrices]
    codes = torch.empty(len(order), sum(part.weight.shape[1] for part in columns), device=factor.device)
    # All of them at once: an input's step costs the same for many rows as for few.
    codes[order] = _rounded(_beside(columns), factor, scheme)
    parts = torch.split(codes, [part.weight.shape[1] for part in columns], dim=1)
    raised = damping if damping > setting.damping else None
    return [
        Rounded(codes=stored(part.T, matrix.ranges, size, scheme), damping=raised)
        for part, matrix in zip(parts, matrices, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Holds what is rounded with all rows' weights of one input side by side: float32 `[I, O]` each."""

    weight: Tensor
    scale: Tensor
    zero: Tensor | None


def _columns(matrix: Matrix, order: Tensor, size: int) -> Columns:
    zero = matrix.ranges.zero
    groups = order // size
    return Columns(
        weight=matrix.weight.T[order],
        scale=matrix.ranges.scale.squeeze(-1).T[groups],
        zero=None if zero is None else zero.squeeze(-1).T[groups],
    )


def _beside(columns: Sequence[Columns]) -> Columns:
    zeros = [part.zero for part in columns if part.zero is not None]
    return Columns(
        weight=torch.cat([part.weight for part in columns], dim=1),
        scale=torch.cat([part.scale for part in columns], dim=1),
        zero=torch.cat(zeros, dim=1) if zeros else None,
    )


def _rounded(columns: Columns, factor: Tensor, scheme: Scheme) -> Tensor:
    """Round input after input; returns whole float32 codes `[I, O]`, written over the weights."""
    inputs = columns.weight.shape[0]
    for start in range(0, inputs, BLOCK):
        end = min(start + BLOCK, inputs)
        errors = _round_block(columns, factor, scheme, start, end)
        columns.weight[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    return columns.weight


def _round_block(columns: Columns, factor: Tensor, scheme: Scheme, start: int, end: int) -> Tensor:
    """Round the inputs of one block, and spread their errors inside it; returns these, `[block, O]`."""
    weight = columns.weight[start:end]
    errors = torch.empty_like(weight)
    for step, column in enumerate(range(start, end)):
        scale, error = columns.scale[column], errors[step].copy_(weight[step])
        zero = None if columns.zero is None else columns.zero[column]
        codes = encode_(weight[step], Ranges(scale=scale, zero=zero), scheme)
        error.addcmul_(codes if zero is None else codes - zero, scale, value=-1)
        weight[step + 1 :].addr_(factor[column, column + 1 : end], error, alpha=-1)
    return errors


def damped_factor(gram: Tensor, damping: float) -> tuple[Tensor, float]:
    """Factor the inverse of a damped Gram matrix: `U` upper triangular with `UᵀU = (G + λ mean(diag G) 1)⁻¹`.

    Too few tokens, dead or repeated inputs make it singular: where float32 fails, float64 is tried, then more damping.

    Args:
        gram: `[I, I]`, symmetric, float32.
        damping: λ, the share of the mean of the diagonal that is added to it.

    Returns:
        `U`, float32 `[I, I]`, each row divided by its diagonal element, and the λ that was used.
    """
    mean = gram.diagonal().double().mean().clamp(min=torch.finfo(torch.float32).tiny)
    # In units of its mean: a Gram matrix near the ends of float32 has no room for its factor.
    unit = (gram.double() / mean).flip(0, 1)
    while True:
        for dtype in (torch.float32, torch.float64):
            lower, failed = torch.linalg.cholesky_ex(_damped(unit, damping).to(dtype))
            if not int(failed):
                inverse = _inverse_of(lower.flip(0, 1))
                if bool(inverse.isfinite().all()):
                    return inverse.float(), damping
        damping *= STRONGER
        assert damping < STRONGEST


def _damped(gram: Tensor, damping: float) -> Tensor:
    damped = gram.clone()
    damped.diagonal().add_(damping)
    return damped


def _inverse_of(upper: Tensor) -> Tensor:
    """The inverse of `R` with `R Rᵀ = H`, so that `UᵀU = H⁻¹`, rows divided by their diagonal elements."""
    identity = torch.eye(upper.shape[0], dtype=upper.dtype, device=upper.device)
    inverse: Tensor = torch.linalg.solve_triangular(upper, identity, upper=True)
    return inverse / inverse.diagonal()[:, None]
