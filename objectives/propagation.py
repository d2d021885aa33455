"""Round a block once more, for the inputs that it has once everything before it is quantized.

Responsible for the order: site after site, as the model computes, so that each makes up for what quantizing those
before it has changed. Scales that fold stay as they were chosen. May assume a block that has just been quantized. Shape
letters: `O` outputs, `I` inputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from objectives.calibration.prefix import PrefixStatistics, QuantizedPrefix
from objectives.calibration.recording import BlockStatistics
from objectives.model.roles import Block, LinearRole
from objectives.suitability import parts_by_setting
from quant.layers import QuantizedLinear, quantize_set
from quant.linears import LinearInput, LinearSet
from quant.plan import Plan
from quant.propagation import corrected
from quant.setting import Setting


@dataclass(frozen=True, kw_only=True)
class FirstRound:
    """Holds what a Linear has become when it is rounded once more.

    Attributes:
        weight: Its original weight, `[O, I]`.
        quantized: What took its place.
        divisor: What its rows were divided by, `[O]`; None where by nothing.
    """

    weight: Tensor
    quantized: QuantizedLinear
    divisor: Tensor | None


def prefix_sizes(blocks: Sequence[Block], plan: Plan) -> list[int]:
    """Return the numbers of samples that settings of a plan follow through the quantized blocks."""
    settings = {plan.setting_for(linear.name) for block in blocks for linear in block.linears}
    return sorted({setting.n_calib for setting in settings if setting.follows_prefix})


def round_again(
    block: Block,
    rounds: Mapping[str, FirstRound],
    prefixes: Mapping[int, QuantizedPrefix],
    statistics: Mapping[int, BlockStatistics],
    plan: Plan,
) -> Iterator[tuple[LinearRole, QuantizedLinear]]:
    """Round the Linears once more that follow the quantized prefix, and yield what became of each.

    Args:
        block: Quantized, and entered by the prefixes before that.
        rounds: Of each of its Linears, by name.
        prefixes: By their number of samples.
        statistics: Of full precision, likewise.
        plan: How to quantize.

    Raises:
        QuantizationError: If a weight is not finite, naming the layer.
    """
    for site in block.sites:
        for (part,), setting in parts_by_setting([site], plan):
            if not setting.follows_prefix:
                continue
            scale = _folded(rounds[part.linears[0].name], setting)
            prefix = prefixes[setting.n_calib].observe(block, site, scale)
            outputs = statistics[setting.n_calib].outputs
            linears = tuple(
                LinearInput(
                    name=linear.name,
                    weight=_target(rounds[linear.name], scale, prefix, setting),
                    outputs=outputs[linear.name],
                    divisor=rounds[linear.name].divisor,
                )
                for linear in part.linears
            )
            again = quantize_set(LinearSet(linears=linears, kind=site.kind, inputs=prefix.inputs, folds=False), setting)
            for linear, quantized in zip(part.linears, again, strict=True):
                linear.set_weight(quantized.weight)
                yield linear, _merged(rounds[linear.name].quantized, quantized, setting)


def _folded(first: FirstRound, setting: Setting) -> Tensor | None:
    """What the inputs of a Linear are divided by in the model, `[I]`."""
    return None if setting.scales_at_run_time else first.quantized.scale


def _target(first: FirstRound, scale: Tensor | None, prefix: PrefixStatistics, setting: Setting) -> Tensor:
    """The corrected weight for inputs that are divided by `scale`, float32 `[O, I]`, before its rows are divided."""
    weight = first.weight.float() if scale is None else first.weight.float() * scale
    return corrected(weight, prefix.inputs.gram, prefix.drift, setting.damping)


def _merged(first: QuantizedLinear, again: QuantizedLinear, setting: Setting) -> QuantizedLinear:
    """The second round's codes and losses; the first one's scale, where that is folded."""
    again = replace(again, weight=again.weight.to(first.weight.dtype))
    if setting.scales_at_run_time:
        return again
    return replace(again, scale=first.scale, alpha=first.alpha, nearest_loss=first.nearest_loss)
