"""Quantize the Linears that share one input: salience, error weights, alpha search, rounding, kept rows.

Responsible for applying a `Setting` to tensors and statistics. May assume that the layer roles were discovered
elsewhere and are handed down as data. Shape letters: `O` outputs, `I` inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from quant.errors import QuantizationError
from quant.grid import effective_weight
from quant.methods import Setting
from quant.salience import Kind, error_weights, importance, input_salience, kept_rows
from quant.search import Problem, QuadraticForm, candidate_scales, losses
from quant.statistics import InputStatistics, OutputStatistics


@dataclass(frozen=True, kw_only=True)
class HeadTie:
    """Inputs of an output projection that must share a scale: the query heads of one key/value head.

    The inputs are laid out as `[kv_heads, repeats, head_dim]`; a scale that folds into the value projection is equal
    along `repeats` (DESIGN 3, `foldable`).
    """

    kv_heads: int
    repeats: int
    head_dim: int

    def average(self, per_input: Tensor) -> Tensor:
        """`[I]` replaced by its mean over the tied query heads, `[I]`."""
        heads = per_input.view(self.kv_heads, self.repeats, self.head_dim)
        return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)


@dataclass(frozen=True, kw_only=True)
class LinearInput:
    """One Linear to quantize: its weight `[O, I]` in the model's dtype and the statistics of its outputs."""

    name: str
    weight: Tensor
    outputs: OutputStatistics


@dataclass(frozen=True, kw_only=True)
class LinearSet:
    """Linears with a common input.

    Attributes:
        linears: At least one; all have the same number of inputs.
        kind: Whether they belong to attention or to the MLP.
        inputs: Statistics of the common input.
        folds: Whether an input scale can be folded into what produces the input.
        tie: Which inputs must share a scale for that.
    """

    linears: tuple[LinearInput, ...]
    kind: Kind
    inputs: InputStatistics
    folds: bool = True
    tie: HeadTie | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizedLinear:
    """One quantized Linear.

    Attributes:
        name: As given.
        weight: `W_eff` `[O, I]` in the model's dtype.
        scale: `S` `[I]`, float32; None where inputs are not scaled.
        alpha: The chosen exponent; 0 where none was searched.
        nearest_loss: Loss of nearest rounding of all rows under this method's error weights.
        loss: Loss of the choice, to which rows in 16 bit add nothing; summed over the Linears that share a scale,
            never above their `nearest_loss`.
    """

    name: str
    weight: Tensor
    scale: Tensor | None
    alpha: float
    nearest_loss: float
    loss: float


def quantize_set(linears: LinearSet, setting: Setting, loss_dtype: torch.dtype | None = None) -> list[QuantizedLinear]:
    """Quantize Linears with a common input; `setting.scales` says whether they share one input scale.

    Args:
        linears: Weights and statistics.
        setting: What to do.
        loss_dtype: Operand type of the loss product; by default the fastest of the device.

    Raises:
        QuantizationError: If a weight or a statistic is not finite, naming the layer.
    """
    _require_finite(linears)
    form = QuadraticForm(linears.inputs.gram, loss_dtype)
    if setting.scales == "linear":
        alone = [replace(linears, linears=(linear,), folds=True, tie=None) for linear in linears.linears]
        return [quantized for one in alone for quantized in _quantize_sharing(one, setting, form)]
    return _quantize_sharing(linears, setting, form)


def _quantize_sharing(linears: LinearSet, setting: Setting, form: QuadraticForm) -> list[QuantizedLinear]:
    weights = [linear.weight.float() for linear in linears.linears]
    importances = [
        importance(setting, linears.kind, linears.inputs, linear.outputs, weight)
        for linear, weight in zip(linears.linears, weights, strict=True)
    ]
    kept = [kept_rows(h, setting.kept_rows(len(h))) for h in importances]
    problems = [
        Problem(weight=weight, error_weights=error_weights(setting, linears.kind, h))
        for weight, h in zip(weights, importances, strict=True)
    ]
    remaining = [
        replace(problem, error_weights=problem.error_weights * ~rows)
        for problem, rows in zip(problems, kept, strict=True)
    ]
    scales = _candidates(linears, setting, weights, importances)
    grid = setting.grid(linears.linears[0].weight.dtype)
    rounding = partial(effective_weight, grid=grid)
    found = losses(remaining, form, scales, rounding)
    nearest = losses(problems, form, scales[:1], rounding) if setting.definition.keeps_rows else found
    # A loss that overflowed is no choice; argmin alone would prefer it.
    best = int(found.sum(0).nan_to_num(nan=torch.inf).argmin())
    return [
        QuantizedLinear(
            name=linear.name,
            weight=torch.where(rows[:, None], weight, rounding(weight, scales[best])).to(linear.weight.dtype),
            scale=scales[best] if len(scales) > 1 else None,
            alpha=best / (len(scales) - 1) if best else 0.0,
            nearest_loss=float(unsearched[0]),
            loss=float(loss[best]),
        )
        for linear, weight, rows, unsearched, loss in zip(linears.linears, weights, kept, nearest, found, strict=True)
    ]


def _candidates(
    linears: LinearSet, setting: Setting, weights: Sequence[Tensor], importances: Sequence[Tensor]
) -> list[Tensor]:
    """Input scales to try; the identity alone where the method scales no inputs or no scale could be folded."""
    inputs = linears.inputs
    if setting.definition.salience is None or not linears.folds:
        return [torch.ones_like(inputs.magnitude)]
    if linears.tie is not None:
        inputs = replace(inputs, magnitude=linears.tie.average(inputs.magnitude))
    return candidate_scales(input_salience(setting, linears.kind, inputs, weights, importances), setting.n_grid)


def _require_finite(linears: LinearSet) -> None:
    # One transfer for the whole set: a check per tensor would make a GPU wait for each.
    tensors = [(linear.name, linear.weight) for linear in linears.linears]
    inputs = f"the input statistics of {linears.linears[0].name}"
    tensors += [(inputs, tensor) for tensor in (linears.inputs.gram, linears.inputs.magnitude)]
    for linear in linears.linears:
        outputs = linear.outputs
        used = (outputs.mean, outputs.square, outputs.magnitude, outputs.activated, outputs.structural)
        tensors += [(f"the output statistics of {linear.name}", tensor) for tensor in used]
    # NaN spreads to both ends, so they tell of every element without a mask of them all.
    finite = torch.stack([torch.stack(tensor.aminmax()).isfinite().all() for _, tensor in tensors]).tolist()
    broken = dict.fromkeys(name for (name, _), good in zip(tensors, finite, strict=True) if not good)
    if broken:
        raise QuantizationError(f"NaN or Inf in {', '.join(broken)}; check the model's weights and its dtype")
