"""Which inputs and which outputs matter: importances, saliences, their normalisation and error weights.

Responsible for the formulas of DESIGN 3 (AWQ: Lin et al. 2023, arXiv:2306.00978, section 3.2; PRAQ and the hybrid:
DESIGN 3) as pure functions of statistics. May assume finite float32 tensors. Shape letters: `O` outputs, `I` inputs.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from quant.methods import Normalisation, Placement, Setting
from quant.statistics import InputStatistics, OutputStatistics

Kind = Literal["attention", "mlp"]
SMALLEST_SALIENCE = 1e-8


def importance(outputs: OutputStatistics, kind: Kind, placement: Placement) -> Tensor:
    """`h` `[O]`: `E|act(z)|` for MLP Linears, `E|z|` for attention Linears (DESIGN 3)."""
    if kind == "attention":
        return outputs.magnitude
    return outputs.activated if placement == "original" else outputs.structural


def post_activation_salience(weights: Sequence[Tensor], importances: Sequence[Tensor]) -> Tensor:
    """PRAQ's `p_j = Σ_o h_o |W_oj|`, `[I]`, summed over all Linears that share the input.

    Args:
        weights: `[O, I]` each.
        importances: `h`, `[O]` each, in the same order.
    """
    terms = [h @ weight.abs() for weight, h in zip(weights, importances, strict=True)]
    return torch.stack(terms).sum(0)


def input_salience(
    setting: Setting, kind: Kind, inputs: InputStatistics, weights: Sequence[Tensor], importances: Sequence[Tensor]
) -> Tensor:
    """The normalised salience `s` `[I]` that the method raises to the power alpha.

    Raises:
        ValueError: If the method scales no inputs.
    """
    method = setting.definition
    if method.salience is None:
        raise ValueError(f"{method.name} scales no inputs")
    activation = inputs.magnitude
    post = post_activation_salience(weights, importances) if kind == "mlp" else activation
    if method.salience == "activation":
        return normalise(activation, method.normalisation)
    if method.salience == "post-activation":
        return normalise(post, method.normalisation)
    blended = [normalise(salience, method.normalisation) for salience in (activation, post)]
    return (1 - setting.beta) * blended[0] + setting.beta * blended[1]


def normalise(salience: Tensor, how: Normalisation) -> Tensor:
    """`mean(v) = v / mean v`, or `soft(v) = 0.1 + 9.9 (v - min v) / (max v - min v)`; all ones when constant."""
    v = salience.clamp(min=SMALLEST_SALIENCE)
    if how == "mean":
        return v / v.mean()
    low, high = v.aminmax()
    if low == high:
        return torch.ones_like(v)
    return 0.1 + 9.9 * (v - low) / (high - low)


def error_weights(setting: Setting, kind: Kind, h: Tensor) -> Tensor:
    """`w` `[O]` of the loss `Σ_o w_o Δ_o G Δ_oᵀ`, with mean 1, so that losses of one Linear are comparable."""
    method = setting.definition
    if method.error_weights == "softmax":
        return h.numel() * torch.softmax(h / setting.tau, 0)
    if method.error_weights == "importance" and kind == "mlp":
        return normalise(h, "mean")
    return torch.ones_like(h)
