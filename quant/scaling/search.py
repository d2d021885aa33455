"""The search for the exponent alpha: quadratic losses of candidate input scales in Gram form.

Responsible for `Σ_o w_o Δ_o G Δ_oᵀ` with `Δ = Q(W S) / S - W` (docs/methods.md). This equals the weighted mean squared
output error over all calibration tokens, so no activations are kept and no forward pass is made. May assume finite
float32 weights. Shape letters: `O` outputs, `I` inputs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from quant.matmul import fast_dtype, piece_elements

SMALLEST_SCALE = 1e-5
# Columns of the Gram matrix multiplied at a time: narrower ones skip more of its lower triangle, at a lower rate.
PANEL = 384

Rounding = Callable[[Tensor, Tensor], Tensor]
"""`(rows of W, S) -> rows of W_eff`, `[rows, I]`, in float32; rows must not influence each other."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One Linear's share of a search: its weights `[O, I]` and the error weights `[O]` of its outputs."""

    weight: Tensor
    error_weights: Tensor


class QuadraticForm:
    """`Δ ↦ Δ_o G Δ_oᵀ` for many rows at once, at less arithmetic than a full product.

    The symmetric G is replaced by its upper triangle with doubled off-diagonal, which gives the same values; the
    blocks below the diagonal are skipped.
    """

    def __init__(self, gram: Tensor, dtype: torch.dtype | None = None) -> None:
        """Prepare `gram` `[I, I]`; `dtype` is the operand type of the product, by default the device's fastest."""
        self.dtype = dtype or fast_dtype(gram.device.type)
        bounds = [*range(0, gram.shape[0], PANEL), gram.shape[0]]
        self._panels = [(start, end, self._panel(gram, start, end)) for start, end in pairwise(bounds)]

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the value of the form for each row of `rows` `[..., I]` of type `dtype`, float32 `[...]`."""
        total = torch.zeros(rows.shape[:-1], device=rows.device)
        for start, end, panel in self._panels:
            product = rows[..., :end] @ panel
            total += product.mul_(rows[..., start:end]).sum(-1, dtype=torch.float32)
        return total

    def _panel(self, gram: Tensor, start: int, end: int) -> Tensor:
        panel = 2 * gram[:end, start:end]
        corner = panel[start:end].triu_()
        corner.diagonal().mul_(0.5)
        return panel.to(self.dtype)


def candidate_scales(salience: Tensor, n_grid: int) -> list[Tensor]:
    """Return `S = max(s^alpha, 1e-5)`, `[I]`, for `alpha = k / n_grid`, `k = 0..n_grid`; the first is the identity."""
    return [salience.pow(k / n_grid).clamp(min=SMALLEST_SCALE) for k in range(n_grid + 1)]


def losses(problems: Sequence[Problem], form: QuadraticForm, scales: Sequence[Tensor], rounding: Rounding) -> Tensor:
    """Return the loss of every candidate scale on Linears that share an input.

    Args:
        problems: The Linears.
        form: The quadratic form of `E[x xᵀ]` of the shared input.
        scales: Candidates for S, `[I]` each.
        rounding: How rows become rows of `W_eff`.

    Returns:
        float64 `[linears, candidates]`, on the CPU: one transfer for the whole search.
    """
    return torch.stack([_losses(problem, form, scales, rounding) for problem in problems]).cpu()


def loss(problem: Problem, form: QuadraticForm, effective: Tensor) -> float:
    """Compute the loss of one matrix `W_eff` `[O, I]`, float32, in place of a Linear's weight; `effective` stays."""
    errors = (effective - problem.weight).to(form.dtype)
    return float(form(errors).double() @ problem.error_weights.double())


def _losses(problem: Problem, form: QuadraticForm, scales: Sequence[Tensor], rounding: Rounding) -> Tensor:
    total = torch.zeros(len(scales), dtype=torch.float64, device=problem.weight.device)
    for rows, weights in _row_chunks(problem):
        # All candidates go through one product: a processor repacks the Gram matrix for each.
        errors = rows.new_empty(len(scales), *rows.shape, dtype=form.dtype)
        for error, scale in zip(errors, scales, strict=True):
            error.copy_(rounding(rows, scale).sub_(rows))
        total += form(errors).double() @ weights.double()
    return total


def _row_chunks(problem: Problem) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows in pieces that stay in a processor's cache while every candidate is tried on them."""
    elements = piece_elements(problem.weight.device.type)
    size = max(32, elements // problem.weight.shape[1])
    return zip(torch.split(problem.weight, size), torch.split(problem.error_weights, size), strict=True)
