"""Weights that make up for what quantizing before them has changed in their inputs.

Responsible for the corrected weight of a Linear whose inputs `x~` are no longer those of full precision, `x`: the one
that comes nearest to the outputs that the Linear had (Arai and Ichikawa 2025, arXiv:2504.09629; docs/methods.md,
quantized prefix). May assume float32 statistics. Shape letters: `O` outputs, `I` inputs.
"""

import torch
from torch import Tensor

# What the damping is multiplied with until the factorisation holds.
STRONGER, STRONGEST = 10.0, 1e12


def corrected(weight: Tensor, gram: Tensor, drift: Tensor, damping: float) -> Tensor:
    """Compute `W + W E[(x - x~) x~ᵀ] (E[x~ x~ᵀ] + λ mean(diag) 1)⁻¹`, which is W where inputs are what they were.

    With λ = 0 it has the least `E|W x - W' x~|²`; the damping draws it towards W.

    Args:
        weight: `W`, `[O, I]`.
        gram: `E[x~ x~ᵀ]`, float32 `[I, I]`.
        drift: `E[(x - x~) x~ᵀ]`, float32 `[I, I]`.
        damping: λ, the share of the mean of the diagonal that is added to it; more where rounding errors have made the
            matrix indefinite.

    Returns:
        `W'`, float32 `[O, I]`.
    """
    mean = gram.diagonal().double().mean()
    if not 0 < float(mean) < torch.inf:
        # Inputs that are all zero have nothing to make up for; who checks statistics names what is not finite.
        return weight.float()
    # In units of its mean: a Gram matrix near the ends of float32 has no room for its factor.
    unit = gram.double() / mean
    outer = weight.double() @ (drift.double() / mean)
    while True:
        damped = unit.clone()
        damped.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            return (weight.double() + torch.cholesky_solve(outer.T, factor).T).float()
        damping *= STRONGER
        assert damping < STRONGEST
