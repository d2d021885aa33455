"""Quantize the Linears that share one input: salience, error weights, alpha search, rounding, kept rows.

Responsible for applying a `Setting` to tensors and statistics. Scales that fold are searched and rounded as they will
be stored, so that what is measured is what ships. Shape letters: `O` outputs, `I` inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from quant.linears import LinearInput, LinearSet, require_finite
from quant.rounding.inputs import ScaledInputs
from quant.rounding.matrix import Matrix
from quant.rounding.ranges import effective_in_ranges, find_ranges
from quant.rounding.rounding import PROXY, ROUNDINGS
from quant.scaling.salience import error_weights, importance, input_salience, kept_rows
from quant.scaling.search import Problem, QuadraticForm, Rounding, candidate_scales, loss, losses
from quant.scheme import IntWeight, Scheme, effective_weight, loaded, quantize, undivided
from quant.setting import Setting


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
    """Quantize Linears with a common input; see `quantize_sets`."""
    return quantize_sets([linears], setting, loss_dtype)


def quantize_sets(
    sets: Sequence[LinearSet], setting: Setting, loss_dtype: torch.dtype | None = None
) -> list[QuantizedLinear]:
    """Quantize Linears that read one thing, each set at its own tokens, as experts do, set by set.

    `setting.scales` says whether they all share one input scale. Then a set counts as much as it has tokens.

    Args:
        sets: Weights and statistics; a norm, a tie and the number of inputs are those of the first.
        setting: What to do.
        loss_dtype: Operand type of the loss product; by default the fastest of the device.

    Raises:
        QuantizationError: If a weight or a statistic is not finite, naming the layer.
    """
    for linears in sets:
        require_finite(linears)
    if not setting.scales_at_run_time:
        return _quantize_sharing(sets, setting, [QuadraticForm(linears.inputs.gram, loss_dtype) for linears in sets])
    quantized = []
    for linears in sets:
        form = QuadraticForm(linears.inputs.gram, loss_dtype)
        for linear in linears.linears:
            alone = replace(linears, linears=(linear,), folds=True, tie=None, norm=None)
            quantized += _quantize_sharing([alone], setting, [form])
    return quantized


@dataclass(frozen=True, kw_only=True)
class _Searched:
    """One set of Linears in a search for a scale, in the order of its Linears.

    Attributes:
        linears: The set.
        form: Of its inputs.
        weights: float32 `[O, I]` each.
        importances: `[O]` each.
        kept: Which rows stay in 16 bit, bool `[O]` each.
        problems: With every row.
        remaining: Without the rows that stay.
        share: Of the tokens of all sets.
    """

    linears: LinearSet
    form: QuadraticForm
    weights: list[Tensor]
    importances: list[Tensor]
    kept: list[Tensor]
    problems: list[Problem]
    remaining: list[Problem]
    share: float


def _searched(linears: LinearSet, setting: Setting, form: QuadraticForm, share: float) -> _Searched:
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
    return _Searched(
        linears=linears,
        form=form,
        weights=weights,
        importances=importances,
        kept=kept,
        problems=problems,
        remaining=remaining,
        share=share,
    )


def _quantize_sharing(
    sets: Sequence[LinearSet], setting: Setting, forms: Sequence[QuadraticForm]
) -> list[QuantizedLinear]:
    tokens = sum(linears.inputs.tokens for linears in sets)
    searched = [
        _searched(linears, setting, form, linears.inputs.tokens / tokens if len(sets) > 1 and tokens else 1.0)
        for linears, form in zip(sets, forms, strict=True)
    ]
    scales = _candidates(searched, setting)
    scheme = setting.scheme(sets[0].stored or sets[0].linears[0].weight.dtype)
    nearest = partial(effective_weight, scheme=scheme)
    proxies = [_proxy(linears, setting, scheme) or nearest for linears in sets]
    by_proxy = [losses(part.remaining, part.form, scales, proxy) for part, proxy in zip(searched, proxies, strict=True)]
    total = torch.stack([part.share * own.sum(0) for part, own in zip(searched, by_proxy, strict=True)]).sum(0)
    # A loss that overflowed is no choice; argmin alone would prefer it.
    best = int(total.nan_to_num(nan=torch.inf).argmin())
    quantized = []
    for part, own, proxy in zip(searched, by_proxy, proxies, strict=True):
        is_nearest = proxy is nearest
        of_nearest = own[:, best] if is_nearest else losses(part.remaining, part.form, [scales[best]], nearest)[:, 0]
        whole = is_nearest and not setting.definition.keeps_rows
        unsearched = own[:, 0] if whole else losses(part.problems, part.form, scales[:1], nearest)[:, 0]
        quantized += _rounded(part, scales, best, scheme, setting, unsearched.tolist(), of_nearest.tolist())
    return quantized


def _rounded(
    part: _Searched,
    scales: Sequence[Tensor],
    best: int,
    scheme: Scheme,
    setting: Setting,
    unsearched: Sequence[float],
    of_nearest: Sequence[float],
) -> list[QuantizedLinear]:
    """Round the Linears of a set under the scale that was chosen; the losses are those of nearest rounding."""
    scale = scales[best]
    stored_as_codes = not (setting.scales_at_run_time or setting.definition.keeps_rows)
    chosen = _round(part.linears, part.remaining, scale, scheme, setting, part.form, of_nearest)
    quantized = []
    for linear, problem, rows, before, after, rounded in zip(
        part.linears.linears, part.remaining, part.kept, unsearched, of_nearest, chosen, strict=True
    ):
        values = loaded(rounded.codes) if stored_as_codes else undivided(rounded.codes, scale)
        quantized.append(
            QuantizedLinear(
                name=linear.name,
                weight=torch.where(rows[:, None], problem.weight, values).to(linear.weight.dtype),
                codes=rounded.codes if stored_as_codes else None,
                scale=scale if len(scales) > 1 else None,
                alpha=best / (len(scales) - 1) if best else 0.0,
                nearest_loss=before,
                loss=after,
                final_loss=rounded.loss,
                fell_back=rounded.fell_back,
                damping=rounded.damping,
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


def _candidates(searched: Sequence[_Searched], setting: Setting) -> list[Tensor]:
    """Input scales to try; the identity alone where the method scales no inputs or no scale could be folded.

    What a set says of the common input counts by its share of the tokens.
    """
    first = searched[0].linears
    inputs = first.inputs
    if setting.definition.salience is None or not first.folds:
        return [torch.ones_like(inputs.magnitude)]
    weights = [weight for part in searched for weight in part.weights]
    importances = [h for part in searched for h in part.importances]
    if len(searched) > 1:
        magnitudes = [part.share * part.linears.inputs.magnitude for part in searched]
        inputs = replace(inputs, magnitude=torch.stack(magnitudes).sum(0))
        importances = [part.share * h for part in searched for h in part.importances]
    if first.tie is not None:
        inputs = replace(inputs, magnitude=first.tie.average(inputs.magnitude))
    scales = candidate_scales(input_salience(setting, first.kind, inputs, weights, importances), setting.n_grid)
    return scales if first.norm is None else [first.norm.representable(scale) for scale in scales]
