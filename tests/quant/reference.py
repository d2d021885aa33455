"""A slow, literal float64 version of the mathematics of quantization, written from its formulas alone.

Responsible for saying what the package `quant` must compute; shares no code with it and forms no Gram matrix: losses
are means over tokens of the weighted squared output error. Only scales are rounded to a 16-bit type, as they are
where they are stored. Shape letters: `O` outputs, `I` inputs, `N` tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Role = Literal["attention", "gate", "up", "down"]
PER_ROW = ("rtn-channel", "awq", "praq-real", "awq-mixed", "praq-mixed", "praq-mixed-var")
MIXED = ("awq-mixed", "praq-mixed", "praq-mixed-var")
UNSCALED = ("rtn", "rtn-channel", *MIXED)
UNDECIDED = 1e-5
"""Closer than this to a rounding tie, in steps, float32 and float64 may round to different codes."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A Linear: its role in the block, weight `[O, I]` in the model's dtype and bias `[O]`."""

    name: str
    role: Role
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Linears with a common input, its calibration rows `[N, I]`, and which inputs share a scale when it folds.

    `tie` is `(kv_heads, repeats, head_dim)`; gate comes before up; `activation` acts on one number.
    """

    layers: tuple[Layer, ...]
    inputs: Tensor
    activation: Callable[[float], float]
    tie: tuple[int, int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What to do to the Linears; the names of methods and parameters as users type them."""

    method: str
    beta: float
    tau: float
    n_grid: int
    group_size: int
    symmetric: bool
    sharing: Literal["linear", "foldable"]
    placement: Literal["original", "structural"] = "original"
    keep_ratio: float = 0.2
    beta_risk: float = 3.0
    tau_risk: float = -3.0
    noise_factor: float = 0.2
    variance_penalty: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The result for one Linear.

    Attributes:
        alpha: The exponent that won.
        scale: S, `[I]`; None where nothing was scaled.
        weight: `W_eff`, float64 `[O, I]`, not yet cast to the model's dtype.
        decided: bool `[O, I]`, False where a value is too close to a rounding tie for float32 to decide alike.
        nearest_loss: Loss of nearest rounding of every row.
        nearest_decided: Whether no value of that is too close to a rounding tie.
        losses: This Linear's loss of every candidate, without the rows that stay as they are.
        shared_losses: Sums of `losses` over the Linears that share the scale: what the choice was made by.
    """

    alpha: float
    scale: list[float] | None
    weight: Tensor
    decided: Tensor
    nearest_loss: float
    nearest_decided: bool
    losses: list[float]
    shared_losses: list[float]


def silu(z: float) -> float:
    return z / (1 + math.exp(-z))


def soft(values: Sequence[float]) -> list[float]:
    """`0.1 + 9.9 (v - min v) / (max v - min v)`, all ones when constant, of values clamped to at least 1e-8."""
    v = [max(value, 1e-8) for value in values]
    low, high = min(v), max(v)
    if low == high:
        return [1.0] * len(v)
    return [0.1 + 9.9 * (value - low) / (high - low) for value in v]


def mean(values: Sequence[float]) -> list[float]:
    """`v / mean v`, of values clamped to at least 1e-8."""
    v = [max(value, 1e-8) for value in values]
    return [value / (sum(v) / len(v)) for value in v]


def magnitude(rows: Tensor) -> list[float]:
    """`E|x_j|` over the rows `[N, I]`."""
    table = rows.double().tolist()
    return [sum(abs(row[j]) for row in table) / len(table) for j in range(rows.shape[1])]


def tied(values: Sequence[float], tie: tuple[int, int, int]) -> list[float]:
    """Values `[kv_heads * repeats * head_dim]`, each replaced by its mean over `repeats`."""
    kv_heads, repeats, head_dim = tie
    result = [0.0] * len(values)
    for head in range(kv_heads):
        for channel in range(head_dim):
            places = [(head * repeats + repeat) * head_dim + channel for repeat in range(repeats)]
            average = sum(values[place] for place in places) / repeats
            for place in places:
                result[place] = average
    return result


def importance(layer: Layer, layers: Layers, placement: str) -> list[float]:
    """`h_o`: `E|z_o|` in attention, in the MLP `E|act(z_o)|` or the magnitude of what the block computes from z."""
    act = layers.activation
    z = _outputs(layer, layers.inputs)
    if layer.role == "attention" or (layer.role == "down" and placement == "structural"):
        result = z
    elif layer.role == "up" and placement == "structural":
        gate = _outputs(next(other for other in layers.layers if other.role == "gate"), layers.inputs)
        result = [[act(g) * u for g, u in zip(*rows, strict=True)] for rows in zip(gate, z, strict=True)]
    else:
        result = [[act(value) for value in row] for row in z]
    return [sum(abs(row[o]) for row in result) / len(result) for o in range(len(layer.weight))]


def risk(layer: Layer, layers: Layers, rules: Rules) -> list[float]:
    """`sigmoid(beta_r (upper_o - tau_r)) (E|z_o| + std z_o)`, by the deviations of the outputs themselves."""
    z, x = _outputs(layer, layers.inputs), layers.inputs.double().tolist()
    noise = rules.noise_factor * sum(abs(value) for row in x for value in row) / (len(x) * len(x[0]))
    result = []
    for o, (std, weights) in enumerate(zip(deviation(layer, layers), layer.weight.double().tolist(), strict=True)):
        expected = sum(row[o] for row in z) / len(z)
        upper = expected + 3 * std + noise * sum(abs(w) for w in weights) / len(weights)
        sigmoid = 1 / (1 + math.exp(-rules.beta_risk * (upper - rules.tau_risk)))
        result.append(sigmoid * (sum(abs(row[o]) for row in z) / len(z) + std))
    return result


def deviation(layer: Layer, layers: Layers) -> list[float]:
    """`std z_o` over the rows."""
    z = _outputs(layer, layers.inputs)
    means = [sum(row[o] for row in z) / len(z) for o in range(len(layer.weight))]
    return [math.sqrt(sum((row[o] - center) ** 2 for row in z) / len(z)) for o, center in enumerate(means)]


def kept(layer: Layer, layers: Layers, rules: Rules) -> list[int]:
    """The rows that mixed methods leave as they are: the nearest whole number of them, halves up, best first."""
    if rules.method not in MIXED:
        return []
    if layer.role == "attention" or rules.method == "awq-mixed":
        z = _outputs(layer, layers.inputs)
        score = [sum(abs(row[o]) for row in z) / len(z) for o in range(len(layer.weight))]
    else:
        score = risk(layer, layers, rules)
        if rules.method == "praq-mixed-var":
            spreads = deviation(layer, layers)
            score = [s / max(std, 1e-8) ** rules.variance_penalty for s, std in zip(score, spreads, strict=True)]
    best_first = sorted(range(len(score)), key=lambda o: (-score[o], o))
    return best_first[: math.floor(rules.keep_ratio * len(score) + 0.5)]


def post_activation(weights: Sequence[Tensor], importances: Sequence[Sequence[float]]) -> list[float]:
    """`p_j = Σ_o h_o |W_oj|` over all given Linears."""
    p = [0.0] * weights[0].shape[1]
    for weight, h in zip(weights, importances, strict=True):
        for h_o, row in zip(h, weight.double().tolist(), strict=True):
            for j, w in enumerate(row):
                p[j] += h_o * abs(w)
    return p


def error_weights(method: str, tau: float, in_mlp: bool, h: Sequence[float]) -> list[float]:
    """`w_o` of the loss: uniform, `mean(h)` on the MLP for V1, `O softmax(h / tau)` for V2."""
    if method == "gwh-praq-v2":
        powers = [math.exp((value - max(h)) / tau) for value in h]
        return [len(h) * power / sum(powers) for power in powers]
    if method == "gwh-praq-v1" and in_mlp:
        return mean(h)
    return [1.0] * len(h)


def output_error(inputs: Tensor, delta: Tensor, weights: Sequence[float]) -> float:
    """Mean over tokens of `Σ_o w_o (x · Δ_o)²`: the loss, by brute force."""
    total = 0.0
    for row in (inputs.double() @ delta.double().T).tolist():
        total += sum(w * error * error for w, error in zip(weights, row, strict=True))
    return total / len(inputs)


def fake_quantize(
    matrix: Tensor, group_size: int | None, symmetric: bool, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`Q` of `[O, I]`, element by element, and which elements are clear of a rounding tie."""
    size = group_size or matrix.shape[1]
    values, decided = [], []
    for row in matrix.double().tolist():
        values.append([])
        decided.append([])
        for start in range(0, len(row), size):
            group = row[start : start + size]
            zeros_appended = group + [0.0] * (size - len(group))
            value, clear = _quantize_group(zeros_appended, symmetric, scale_dtype)
            values[-1] += value[: len(group)]
            decided[-1] += clear[: len(group)]
    return torch.tensor(values, dtype=torch.float64), torch.tensor(decided)


def effective_weight(
    weight: Tensor, scale: Sequence[float], group_size: int | None, symmetric: bool, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`W_eff = Q(W S) / S`, with which elements are clear of a rounding tie."""
    scaled = [[w * s for w, s in zip(row, scale, strict=True)] for row in weight.double().tolist()]
    values, decided = fake_quantize(torch.tensor(scaled, dtype=torch.float64), group_size, symmetric, scale_dtype)
    divided = [[value / s for value, s in zip(row, scale, strict=True)] for row in values.tolist()]
    return torch.tensor(divided, dtype=torch.float64), decided


def quantize(layers: Layers, rules: Rules) -> list[Choice]:
    """Quantize Linears with a common input, each on its own or all with one scale."""
    if rules.sharing == "foldable":
        return _quantize_sharing(layers.layers, layers, layers.tie, rules)
    return [_quantize_sharing((layer,), layers, None, rules)[0] for layer in layers.layers]


def _quantize_sharing(
    sharing: tuple[Layer, ...], layers: Layers, tie: tuple[int, int, int] | None, rules: Rules
) -> list[Choice]:
    importances = [importance(layer, layers, rules.placement) for layer in sharing]
    in_mlp = sharing[0].role != "attention"
    scales = _candidates(sharing, layers, tie, importances, in_mlp, rules)
    group_size = None if rules.method in PER_ROW else rules.group_size
    table, rounded, nearest = [], [], []
    for layer, h in zip(sharing, importances, strict=True):
        weights = error_weights(rules.method, rules.tau, in_mlp, h)
        scale_dtype = torch.float16 if layer.weight.dtype == torch.float32 else layer.weight.dtype
        tried = [effective_weight(layer.weight, s, group_size, rules.symmetric, scale_dtype) for s in scales]
        nearest.append(
            (output_error(layers.inputs, tried[0][0] - layer.weight.double(), weights), bool(tried[0][1].all()))
        )
        for row in kept(layer, layers, rules):
            for found, decided in tried:
                found[row], decided[row] = layer.weight[row].double(), True
        rounded.append(tried)
        table.append([output_error(layers.inputs, found - layer.weight.double(), weights) for found, _ in tried])
    shared = [sum(row[k] for row in table) for k in range(len(scales))]
    best = shared.index(min(shared))
    searched = len(scales) > 1
    return [
        Choice(
            alpha=best / rules.n_grid if searched else 0.0,
            scale=scales[best] if searched else None,
            weight=tried[best][0],
            decided=tried[best][1],
            nearest_loss=unsearched[0],
            nearest_decided=unsearched[1],
            losses=losses,
            shared_losses=shared,
        )
        for losses, tried, unsearched in zip(table, rounded, nearest, strict=True)
    ]


def _candidates(
    sharing: Sequence[Layer],
    layers: Layers,
    tie: tuple[int, int, int] | None,
    importances: Sequence[Sequence[float]],
    in_mlp: bool,
    rules: Rules,
) -> list[list[float]]:
    a = magnitude(layers.inputs)
    if rules.method in UNSCALED:
        return [[1.0] * len(a)]
    if tie is not None:
        a = tied(a, tie)
    weights = [layer.weight for layer in sharing]
    if rules.method == "gwh-praq-v2":
        p = post_activation(weights, importances) if in_mlp else a
        s = [(1 - rules.beta) * x + rules.beta * y for x, y in zip(soft(a), soft(p), strict=True)]
    elif rules.method == "gw-praq":
        s = soft(post_activation(weights, importances) if in_mlp else a)
    elif rules.method == "praq-real":
        s = soft(post_activation(weights, [risk(layer, layers, rules) for layer in sharing]) if in_mlp else a)
    else:
        s = mean(a)
    return [[max(s_j ** (k / rules.n_grid), 1e-5) for s_j in s] for k in range(rules.n_grid + 1)]


def _quantize_group(group: list[float], symmetric: bool, scale_dtype: torch.dtype) -> tuple[list[float], list[bool]]:
    if symmetric:
        exact, zero, lowest, highest = max(abs(w) for w in group) / 7, 0, -8, 7
    else:
        mn, mx = min(0.0, *group), max(0.0, *group)
        exact, lowest, highest = (mx - mn) / 15, 0, 15
    scale = _stored(exact, scale_dtype) if exact else 1.0
    clear = _stored(exact * (1 - 1e-6), scale_dtype) == _stored(exact * (1 + 1e-6), scale_dtype)
    if not symmetric:
        zero = min(max(round(-mn / scale), 0), 15)
        clear &= _clear_of_tie(-mn / scale)
    codes = [min(max(round(w / scale) + zero, lowest), highest) for w in group]
    return [(code - zero) * scale for code in codes], [clear and _clear_of_tie(w / scale) for w in group]


def _stored(value: float, dtype: torch.dtype) -> float:
    """The nearest number of a 16-bit type, ties to even; 8 or 11 significant bits, fewer below the normal range."""
    bits, smallest = {torch.bfloat16: (8, 2.0**-133), torch.float16: (11, 2.0**-24)}[dtype]
    step = max(math.ldexp(1.0, math.frexp(value)[1] - bits), smallest)
    return round(value / step) * step


def _clear_of_tie(position: float) -> bool:
    return abs(position - math.floor(position) - 0.5) > UNDECIDED


def _outputs(layer: Layer, inputs: Tensor) -> list[list[float]]:
    return (inputs.double() @ layer.weight.double().T + layer.bias.double()).tolist()
