"""Quantize a model in place, block by block, and count what it takes.

Responsible for walking from roles and statistics to weights. Holds one block's statistics at a time. May assume that
the model has its original weights when it starts; who calls puts them back (`objectives.model.weights`). With scales
that fold, what it leaves in memory is the model that is stored.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from objectives.calibration.calibration import Calibration
from objectives.calibration.prefix import QuantizedPrefix
from objectives.calibration.recording import BlockStatistics
from objectives.calibration.shrinking import expert_tokens, own_share
from objectives.model.folding import fold, norm_weight
from objectives.model.layouts import Role
from objectives.model.loading import Model
from objectives.model.roles import Block, InputSite, LinearRole, scale_groups
from objectives.progress import Progress
from objectives.propagation import FirstRound, prefix_sizes, round_again
from objectives.suitability import parts_by_setting
from quant.layers import QuantizedLinear, quantize_sets
from quant.linears import LinearInput, LinearSet, require_finite
from quant.plan import Plan
from quant.scheme import IntWeight
from quant.sizes import ModelSize, input_scale_bits, matrix_bits


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """What was chosen for one Linear, and what it costs.

    Attributes:
        name: The Linear's.
        depth: Index of its block.
        role: What the block uses it for.
        alpha: The chosen exponent.
        nearest_loss: Loss of nearest rounding.
        loss: Loss of the search's choice, rounded to nearest.
        final_loss: Loss of the codes.
        fell_back: Whether nearest rounding was kept because what was asked for would have lost more.
        damping: What GPTQ had to add to the Gram matrix, as a share of its mean diagonal, where that is more than was
            asked for.
        tokens: How many the router sent its expert in calibration; None for Linears that read them all.
        own_share: What those count for beside what all experts read, 1 where every expert read all tokens; None for
            Linears of no expert.
    """

    name: str
    depth: int
    role: Role
    alpha: float
    nearest_loss: float
    loss: float
    final_loss: float
    fell_back: bool = False
    damping: float | None = None
    tokens: int | None = None
    own_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class FoldedScales:
    """What was folded into the weight of a Linear: it stores `Q(W S / d)` of the original `W` `[O, I]`.

    Attributes:
        inputs: S, `[I]`; None where its inputs are not scaled.
        outputs: d, `[O]`, the scale of what reads its outputs; None where that folds into nothing of it.
    """

    inputs: Tensor | None
    outputs: Tensor | None

    def done(self, weight: Tensor) -> Tensor:
        """Return what is rounded of the original weight `[O, I]`, float32 `[O, I]`."""
        scaled = weight.float() if self.inputs is None else weight.float() * self.inputs
        return scaled if self.outputs is None else scaled / self.outputs[:, None]

    def undone(self, stored: Tensor) -> Tensor:
        """Return the weight that does without the scales what `stored` `[O, I]` does with them, float32 `[O, I]`."""
        weight = stored.float()
        weight = weight if self.inputs is None else weight / self.inputs
        return weight if self.outputs is None else weight * self.outputs[:, None]


@dataclass(frozen=True, kw_only=True)
class QuantizedBlocks:
    """What quantizing the blocks of a model gave, beside the weights that are now in it.

    Attributes:
        layers: One result per Linear, in the model's order.
        codes: What the weights are stored as, on the CPU, by the name of the Linear; only those that were asked for.
        folded: What was folded into those of which there are codes.
    """

    layers: tuple[LayerResult, ...] = ()
    codes: Mapping[str, IntWeight] = field(default_factory=dict)
    folded: Mapping[str, FoldedScales] = field(default_factory=dict)


@torch.inference_mode()
def quantize_model(
    model: Model,
    blocks: Sequence[Block],
    calibration: Calibration,
    plan: Plan,
    progress: Progress,
    with_codes: bool = False,
) -> QuantizedBlocks:
    """Replace the weights of every covered Linear by their quantized values, and fold the scales that fold.

    Args:
        model: With its original weights, where they are put back (`Weights.restored`).
        blocks: Its roles.
        calibration: Its statistics.
        plan: How to quantize; it suits the blocks (`require_suitable`).
        progress: Told how far it is.
        with_codes: Give the codes, too.

    Raises:
        QuantizationError: If a weight is not finite, naming the layer.
        DamagedEntryError: If the calibration cache is damaged; the weights are then partly replaced.
    """
    results: list[LayerResult] = []
    codes: dict[str, IntWeight] = {}
    folded: dict[str, FoldedScales] = {}
    prefixes = {size: calibration.followed(size) for size in prefix_sizes(blocks, plan)}
    for done, block in enumerate(blocks, 1):
        layers: dict[str, LayerResult] = {}
        statistics = _read_statistics(block, calibration, plan)
        tokens = {size: expert_tokens(block, read.inputs) for size, read in statistics.items()}
        with model.weights.changing(block.name):
            for linear, quantized, divisor in _quantize_following(
                block, statistics, prefixes, plan, model.stored_dtype
            ):
                own = tokens.get(plan.setting_for(linear.name).n_calib, {}).get(linear.name)
                share = None if own is None else 1.0 if calibration.route_all else own_share(own, linear.shape[1])
                layers[linear.name] = _layer_result(block, linear, quantized, own, share)
                if with_codes and quantized.codes is not None:
                    codes[linear.name] = quantized.codes.cpu()
                    folded[linear.name] = FoldedScales(inputs=quantized.scale, outputs=divisor)
        results += [layers[linear.name] for linear in block.linears]
        progress(f"quantizing {plan.label()}", done, len(blocks))
    return QuantizedBlocks(layers=tuple(results), codes=codes, folded=folded)


def _quantize_following(
    block: Block,
    statistics: Mapping[int, BlockStatistics],
    prefixes: Mapping[int, QuantizedPrefix],
    plan: Plan,
    stored: torch.dtype,
) -> Iterator[tuple[LinearRole, QuantizedLinear, Tensor | None]]:
    """Quantize one block as `_quantize_block` does, and what follows the prefix again, for the inputs it then has."""
    if not prefixes:
        yield from _quantize_block(block, statistics, plan, stored)
        return
    weights = {linear.name: linear.weight().clone() for linear in block.linears}
    for prefix in prefixes.values():
        prefix.enter(block)
    rounds = {
        linear.name: FirstRound(weight=weights[linear.name], quantized=quantized, divisor=divisor)
        for linear, quantized, divisor in _quantize_block(block, statistics, plan, stored)
    }
    latest = {name: first.quantized for name, first in rounds.items()}
    latest |= {linear.name: quantized for linear, quantized in round_again(block, rounds, prefixes, statistics, plan)}
    for prefix in prefixes.values():
        prefix.advance(block)
    yield from ((linear, latest[linear.name], rounds[linear.name].divisor) for linear in block.linears)


def _quantize_block(
    block: Block, statistics: Mapping[int, BlockStatistics], plan: Plan, stored: torch.dtype
) -> Iterator[tuple[LinearRole, QuantizedLinear, Tensor | None]]:
    """Quantize one block, and yield what became of each Linear, and what its rows were divided by.

    `statistics` are those of each number of samples.
    """
    divisors: dict[str, Tensor] = {}
    # In the order in which the model computes: what comes after a broken weight is broken, too.
    for site in block.sites:
        for (part,), setting in parts_by_setting([site], plan):
            if not setting.is_unquantized:
                require_finite(_linear_set(part, statistics[setting.n_calib], divisors, stored))
    # Backwards: the rows of a Linear are rounded after they have taken the scale of what they feed.
    for group in reversed(scale_groups(block.sites)):
        for parts, setting in parts_by_setting(group, plan):
            linears = [linear for part in parts for linear in part.linears]
            if setting.is_unquantized:
                yield from ((linear, *_unquantized(linear, divisors, stored)) for linear in linears)
                continue
            sets = [_linear_set(part, statistics[setting.n_calib], divisors, stored) for part in parts]
            quantized = quantize_sets(sets, setting)
            for linear, result in zip(linears, quantized, strict=True):
                linear.set_weight(result.weight)
                yield linear, result, divisors.get(linear.name)
            scale = quantized[0].scale
            if scale is not None and not setting.scales_at_run_time:
                divisors |= fold(parts[0], scale, stored)


def _unquantized(
    linear: LinearRole, divisors: Mapping[str, Tensor], stored: torch.dtype
) -> tuple[QuantizedLinear, Tensor | None]:
    """Leave a Linear in 16 bit, but for the scale of what reads its outputs; what rows were divided by is None."""
    divisor, weight = divisors.get(linear.name), linear.weight()
    if divisor is not None:
        weight = (weight.float() / divisor[:, None]).to(stored).to(weight.dtype)
        linear.set_weight(weight)
    untouched = QuantizedLinear(
        name=linear.name, weight=weight, codes=None, scale=None, alpha=0.0, nearest_loss=0.0, loss=0.0, final_loss=0.0
    )
    return untouched, divisor


def _read_statistics(block: Block, calibration: Calibration, plan: Plan) -> dict[int, BlockStatistics]:
    settings = [plan.setting_for(linear.name) for linear in block.linears]
    sizes = {setting.n_calib for setting in settings if not setting.is_unquantized}
    return {size: calibration.read(block, size) for size in sorted(sizes)}


def model_size(model: Model, blocks: Sequence[Block], plan: Plan | None) -> ModelSize:
    """Return the size under a plan, as it is stored; None is the model as it is, every weight in its own type."""
    own_bits = 8 * (model.dtype if plan is None else model.stored_dtype).itemsize
    uncovered = sum(size for block in blocks for size in block.uncovered.values())
    covered = codes = scales = 0
    rest = own_bits * uncovered
    for linear in (linear for block in blocks for linear in block.linears):
        outputs, inputs = linear.shape
        covered += outputs * inputs
        if plan is None:
            rest += own_bits * outputs * inputs
            continue
        setting = plan.setting_for(linear.name)
        if setting.is_unquantized:
            rest += own_bits * outputs * inputs
            continue
        bits = matrix_bits(outputs, inputs, setting.scheme(model.dtype), setting.kept_rows(outputs))
        codes += bits.codes
        scales += bits.scales + input_scale_bits(inputs, setting)
        rest += bits.kept
    weights = covered + uncovered
    outside = own_bits * (sum(parameter.numel() for parameter in model.module.parameters()) - weights)
    return ModelSize(weights=weights, codes=codes / 8, scales=scales / 8, rest=rest / 8, outside=outside / 8)


def stored_bytes(model: Model) -> int:
    """Return what the files of a model's weights take; where there are none, what its tensors do."""
    files = [path.stat().st_size for path in Path(model.name).glob("*.safetensors")]
    return sum(files) or sum(tensor.numel() * tensor.itemsize for tensor in model.module.state_dict().values())


def _linear_set(
    site: InputSite, statistics: BlockStatistics, divisors: Mapping[str, Tensor], stored: torch.dtype
) -> LinearSet:
    return LinearSet(
        linears=tuple(
            LinearInput(
                name=linear.name,
                weight=linear.weight(),
                outputs=statistics.outputs[linear.name],
                divisor=divisors.get(linear.name),
            )
            for linear in site.linears
        ),
        kind=site.kind,
        inputs=statistics.inputs[site.name],
        folds=site.folds,
        tie=site.tie,
        norm=norm_weight(site, stored),
        stored=stored,
    )


def _layer_result(
    block: Block, linear: LinearRole, quantized: QuantizedLinear, tokens: int | None, share: float | None
) -> LayerResult:
    return LayerResult(
        name=linear.name,
        depth=block.index,
        role=linear.role,
        alpha=quantized.alpha,
        nearest_loss=quantized.nearest_loss,
        loss=quantized.loss,
        final_loss=quantized.final_loss,
        fell_back=quantized.fell_back,
        damping=quantized.damping,
        tokens=tokens,
        own_share=share,
    )
