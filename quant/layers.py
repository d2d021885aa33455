"""Quantize the Linears that share one input: salience, error weights, alpha search, rounding, kept rows.

Responsible for applying a `Setting` to tensors and statistics. Scales that fold are searched and rounded as they will
be stored, so that what is measured is what ships. May assume that the layer roles were discovered elsewhere and are
handed down as data. Shape letters: `O` outputs, `I` inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from quant.errors import QuantizationError
from quant.rounding.inputs import ScaledInputs
from quant.rounding.matrix import Matrix
from quant.rounding.ranges import effective_in_ranges, find_ranges
from quant.rounding.rounding import PROXY, ROUNDINGS
from quant.scaling.folding import NormWeight
from quant.scaling.salience import Kind, error_weights, importance, input_salience, kept_rows
from quant.scaling.search import Problem, QuadraticForm, Rounding, candidate_scales, loss, losses
from quant.scheme import IntWeight, Scheme, effective_weight, loaded, quantize, undivided
from quant.setting import Setting
from quant.statistics import InputStatistics, OutputStatistics


@dataclass(frozen=True, kw_only=True)
class HeadTie:
    """Inputs of an output projection that must share a scale: the query heads of one key/value head.

    The inputs are laid out as `[kv_heads, repeats, head_dim]`; a scale that folds into the value projection is equal
    along `repeats` (docs/methods.md).
    """

    kv_heads: int
    repeats: int
    head_dim: int

    def average(self, per_input: Tensor) -> Tensor:
        """`[I]` replaced by its mean over the tied query heads, `[I]`."""
        heads = per_input.view(self.kv_heads, self.repeats, self.head_dim)
        return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)

    def per_value(self, per_input: Tensor) -> Tensor:
        """`[I]`, equal over the tied query heads, as one number for each output of the value projection."""
        return per_input.view(self.kv_heads, self.repeats, self.head_dim)[:, 0].flatten()


@dataclass(frozen=True, kw_only=True)
class LinearInput:
    """One Linear to quantize.

    Attributes:
        name: What errors call it.
        weight: `[O, I]` in the model's dtype.
        outputs: Statistics of its outputs.
        divisor: The input scale of what reads its outputs, `[O]`, where that folds into its rows; None where none does.
    """

    name: str
    weight: Tensor
    outputs: OutputStatistics
    divisor: Tensor | None = None

    def divided(self) -> Tensor:
        """The weight whose outputs are already divided by the divisor, float32 `[O, I]`."""
        weight = self.weight.float()
        return weight if self.divisor is None else weight / self.divisor[:, None]


@dataclass(frozen=True, kw_only=True)
class LinearSet:
    """Linears with a common input.

    Attributes:
        linears: At least one; all have the same number of inputs.
        kind: Whether they belong to attention or to the MLP.
        inputs: Statistics of the common input.
        folds: Whether an input scale can be folded into what produces the input.
        tie: Which inputs must share a scale for that.
        norm: The norm that an input scale folds into; None where it folds into the rows of another Linear.
        stored: The type the model is stored in; None for the weights' own.
    """

    linears: tuple[LinearInput, ...]
    kind: Kind
    inputs: InputStatistics
    folds: bool = True
    tie: HeadTie | None = None
    norm: NormWeight | None = None
    stored: torch.dtype | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizedLinear:
    """One quantized Linear.

    Attributes:
        name: As given.
        weight: What takes the Linear's place, `[O, I]` in the model's dtype. Stored as codes it is `Q(W S)` of the
            divided weight, in the type of its scales: inputs then arrive divided by S. `W_eff` elsewhere.
        codes: What `weight` is stored as; None where rows stay in 16 bit or S is applied at run time.
        scale: `S` `[I]`, float32; None where inputs are not scaled.
        alpha: The chosen exponent; 0 where none was searched.
        nearest_loss: Loss of nearest rounding of all rows under this method's error weights.
        loss: Loss of the search's choice, rounded to nearest, to which rows in 16 bit add nothing; summed over the
            Linears that share a scale, never above their `nearest_loss` where nearest rounding chose.
        final_loss: Loss of the codes that the setting's ranges and rounding chose, never above `loss`.
        fell_back: Whether nearest rounding was kept because what was asked for would have lost more.
        damping: What GPTQ had to add to the Gram matrix, as a share of its mean, where that is more than was asked for.
    """

    name: str
    weight: Tensor
    codes: IntWeight | None
    scale: Tensor | None
    alpha: float
    nearest_loss: float
    loss: float
    final_loss: float
    fell_back: bool = False
    damping: float | None = None


def quantize_set(linears: LinearSet, setting: Setting, loss_dtype: torch.dtype | None = None) -> list[QuantizedLinear]:
    """Quantize Linears with a common input; `setting.scales` says whether they share one input scale.

    Args:
        linears: Weights and statistics.
        setting: What to do.
        loss_dtype: Operand type of the loss product; by default the fastest of the device.

    Raises:
        QuantizationError: If a weight or a statistic is not finite, naming the layer.
    """
    require_finite(linears)
    form = QuadraticForm(linears.inputs.gram, loss_dtype)
    if setting.scales_at_run_time:
        alone = [replace(linears, linears=(linear,), folds=True, tie=None, norm=None) for linear in linears.linears]
        return [quantized for linear_set in alone for quantized in _quantize_sharing(linear_set, setting, form)]
    return _quantize_sharing(linears, setting, form)


def _quantize_sharing(linears: LinearSet, setting: Setting, form: QuadraticForm) -> list[QuantizedLinear]:
    weights = [linear.weight.float() for linear in linears.linears]
    importances = [
        importance(setting, linears.kind, linears.inputs, linear.outputs, weight)
        for linear, weight in zip(linears.linears, weights, strict=True)
    ]
    kept = [kept_rows(h, setting.kept_rows(len(h))) for h in importances]
    problems = [
        _problem(linear, error_weights(setting, linears.kind, h))
        for linear, h in zip(linears.linears, importances, strict=True)
    ]
    remaining = [
        replace(problem, error_weights=problem.error_weights * ~rows)
        for problem, rows in zip(problems, kept, strict=True)
    ]
    scales = _candidates(linears, setting, weights, importances)
    scheme = setting.scheme(linears.stored or linears.linears[0].weight.dtype)
    nearest = partial(effective_weight, scheme=scheme)
    proxy = _proxy(linears, setting, scheme) or nearest
    by_proxy = losses(remaining, form, scales, proxy)
    # A loss that overflowed is no choice; argmin alone would prefer it.
    best = int(by_proxy.sum(0).nan_to_num(nan=torch.inf).argmin())
    scale = scales[best]
    of_nearest = by_proxy[:, best] if proxy is nearest else losses(remaining, form, [scale], nearest)[:, 0]
    whole = proxy is nearest and not setting.definition.keeps_rows
    unsearched = by_proxy[:, 0] if whole else losses(problems, form, scales[:1], nearest)[:, 0]
    stored_as_codes = not (setting.scales_at_run_time or setting.definition.keeps_rows)
    rounded = _round(linears, remaining, scale, scheme, setting, form, of_nearest.tolist())
    quantized = []
    for linear, problem, rows, before, after, chosen in zip(
        linears.linears, remaining, kept, unsearched.tolist(), of_nearest.tolist(), rounded, strict=True
    ):
        values = loaded(chosen.codes) if stored_as_codes else undivided(chosen.codes, scale)
        quantized.append(
            QuantizedLinear(
                name=linear.name,
                weight=torch.where(rows[:, None], problem.weight, values).to(linear.weight.dtype),
                codes=chosen.codes if stored_as_codes else None,
                scale=scale if len(scales) > 1 else None,
                alpha=best / (len(scales) - 1) if best else 0.0,
                nearest_loss=before,
                loss=after,
                final_loss=chosen.loss,
                fell_back=chosen.fell_back,
                damping=chosen.damping,
            )
        )
    return quantized


def _proxy(linears: LinearSet, setting: Setting, scheme: Scheme) -> Rounding | None:
    """What stands in for the codes in the search for input scales; None for nearest rounding."""
    if "alpha_proxy" not in setting.reads or setting.alpha_proxy == PROXY:
        return None
    return partial(effective_in_ranges, scheme=scheme, statistics=linears.inputs)


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """Codes of one Linear with their loss; `fell_back` where those that were asked for would have lost more."""

    codes: IntWeight
    loss: float
    fell_back: bool = False
    damping: float | None = None


def _round(
    linears: LinearSet,
    problems: Sequence[Problem],
    scale: Tensor,
    scheme: Scheme,
    setting: Setting,
    form: QuadraticForm,
    searched: Sequence[float],
) -> list[_Chosen]:
    """Find ranges and codes of the divided weights under the input scale that was chosen.

    `searched` are the losses that the search found for nearest rounding; whoever loses more is not taken.
    """
    inputs = ScaledInputs(statistics=linears.inputs, scale=scale)
    weights = [problem.weight * scale for problem in problems]
    if _as_searched(setting):
        pairs = zip(weights, searched, strict=True)
        return [_Chosen(codes=quantize(weight, scheme), loss=searched_loss) for weight, searched_loss in pairs]
    matrices = [
        Matrix(weight=weight, ranges=find_ranges(weight, scheme, inputs, setting.range_search)) for weight in weights
    ]
    chosen = []
    for problem, matrix, rounded, searched_loss in zip(
        problems, matrices, ROUNDINGS[setting.rounding](matrices, scheme, inputs, setting), searched, strict=True
    ):
        final = loss(problem, form, undivided(rounded.codes, scale))
        # Written so that a loss that overflowed is no choice.
        if final <= searched_loss:
            chosen.append(_Chosen(codes=rounded.codes, loss=final, damping=rounded.damping))
        else:
            chosen.append(_Chosen(codes=quantize(matrix.weight, scheme), loss=searched_loss, fell_back=True))
    return chosen


def _as_searched(setting: Setting) -> bool:
    """Whether the codes are those of the search for input scales."""
    return setting.rounding == PROXY and setting.range_search == "none"


def _problem(linear: LinearInput, weights: Tensor) -> Problem:
    """The search for a Linear's scale: errors count as outputs see them before they are divided."""
    squared = 1 if linear.divisor is None else linear.divisor.square()
    return Problem(weight=linear.divided(), error_weights=weights * squared)


def _candidates(
    linears: LinearSet, setting: Setting, weights: Sequence[Tensor], importances: Sequence[Tensor]
) -> list[Tensor]:
    """Input scales to try; the identity alone where the method scales no inputs or no scale could be folded."""
    inputs = linears.inputs
    if setting.definition.salience is None or not linears.folds:
        return [torch.ones_like(inputs.magnitude)]
    if linears.tie is not None:
        inputs = replace(inputs, magnitude=linears.tie.average(inputs.magnitude))
    scales = candidate_scales(input_salience(setting, linears.kind, inputs, weights, importances), setting.n_grid)
    return scales if linears.norm is None else [linears.norm.representable(scale) for scale in scales]


def require_finite(linears: LinearSet) -> None:
    """Refuse Linears that cannot be quantized.

    Raises:
        QuantizationError: If a weight or a statistic is not finite, naming the layer.
    """
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
