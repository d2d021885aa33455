"""Which inputs and which outputs matter: importances, saliences, their normalisation, error weights, kept rows.

Responsible for the formulas of docs/methods.md (AWQ: Lin et al. 2023, arXiv:2306.00978, section 3.2; PRAQ and the
hybrids are this project's own) as pure functions of statistics. May assume finite float32 tensors. Shape letters: `O`
outputs, `I` inputs.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from quant.methods import Normalisation
from quant.setting import Setting
from quant.statistics import InputStatistics, OutputStatistics

Kind = Literal["attention", "mlp"]
SMALLEST_SALIENCE = 1e-8


def importance(
    setting: Setting, kind: Kind, inputs: InputStatistics, outputs: OutputStatistics, weight: Tensor
) -> Tensor:
    """Return each output's weight to the method, `[O]`: `E|z|` for attention Linears, its own for MLP Linears.

    Args:
        setting: The method and its parameters.
        kind: What the Linear belongs to.
        inputs: Statistics of its input.
        outputs: Statistics of its outputs.
        weight: `[O, I]`.
    """
    measure = setting.definition.importance
    if kind == "attention" or measure == "magnitude":
        return outputs.magnitude
    if measure == "activation":
        return outputs.activated if setting.placement == "original" else outputs.structural
    at_risk = risk(setting, inputs, outputs, weight)
    if measure == "risk":
        return at_risk
    return at_risk / spread(outputs).clamp(min=SMALLEST_SALIENCE).pow(setting.variance_penalty)


def risk(setting: Setting, inputs: InputStatistics, outputs: OutputStatistics, weight: Tensor) -> Tensor:
    """Return `risk_o = sigmoid(β_r (upper_o - τ_r)) · (E|z_o| + std z_o)`, `[O]` (docs/methods.md).

    `upper_o = E z_o + 3 std z_o + noise · E|x| · mean_j |W_oj|` bounds what rounding may make of an output; `E|x|` is
    the mean over all inputs.
    """
    deviation = spread(outputs)
    noise = setting.noise_factor * inputs.magnitude.mean() * weight.abs().mean(1)
    upper = outputs.mean + 3 * deviation + noise
    return torch.sigmoid(setting.beta_risk * (upper - setting.tau_risk)) * (outputs.magnitude + deviation)


def spread(outputs: OutputStatistics) -> Tensor:
    """Return `std z = sqrt(E[z²] - E[z]²)`, `[O]`; a difference below 0 is rounding alone and counts as 0."""
    return (outputs.square - outputs.mean.square()).clamp(min=0).sqrt()


def kept_rows(importances: Tensor, count: int) -> Tensor:
    """Select the `count` most important rows, bool `[O]`; of equal ones the earlier."""
    kept = torch.zeros_like(importances, dtype=torch.bool)
    kept[importances.argsort(descending=True, stable=True)[:count]] = True
    return kept


def post_activation_salience(weights: Sequence[Tensor], importances: Sequence[Tensor]) -> Tensor:
    """Return PRAQ's `p_j = Σ_o h_o |W_oj|`, `[I]`, summed over all Linears that share the input.

    Args:
        weights: `[O, I]` each.
        importances: `h`, or the risk in its place, `[O]` each, in the same order.
    """
    terms = [h @ weight.abs() for weight, h in zip(weights, importances, strict=True)]
    return torch.stack(terms).sum(0)


def input_salience(
    setting: Setting, kind: Kind, inputs: InputStatistics, weights: Sequence[Tensor], importances: Sequence[Tensor]
) -> Tensor:
    """Return the normalised salience `s` `[I]` that the method raises to the power alpha.

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
    """Normalise: `mean(v) = v / mean v`; `soft(v) = 0.1 + 9.9 (v - min v) / (max v - min v)`, ones if constant."""
    v = salience.clamp(min=SMALLEST_SALIENCE)
    if how == "mean":
        return v / v.mean()
    low, high = v.aminmax()
    if low == high:
        return torch.ones_like(v)
    return 0.1 + 9.9 * (v - low) / (high - low)


def error_weights(setting: Setting, kind: Kind, h: Tensor) -> Tensor:
    """Return `w` `[O]` of the loss `Σ_o w_o Δ_o G Δ_oᵀ`, with mean 1 so that a Linear's losses are comparable."""
    method = setting.definition
    if method.error_weights == "softmax":
        return h.numel() * torch.softmax(h / setting.tau, 0)
    if method.error_weights == "importance" and kind == "mlp":
        return normalise(h, "mean")
    return torch.ones_like(h)
