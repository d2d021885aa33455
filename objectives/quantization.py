"""Quantize a model in place, block by block, and count what it takes.

Responsible for walking from roles and statistics to weights. Holds one block's statistics at a time. May assume that
the model has its original weights when it starts; who calls puts them back (`objectives.model.weights`). With scales
that fold, what it leaves in memory is the model that is stored.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from objectives.calibration.calibration import Calibration
from objectives.calibration.prefix import QuantizedPrefix
from objectives.calibration.recording import BlockStatistics
from objectives.calibration.shrinking import expert_tokens, own_share
from objectives.kept_blocks import KeptBlock, KeptBlocks
from objectives.model.folding import fold, norm_weight
from objectives.model.loading import Model
from objectives.model.roles import Block, InputSite, LinearRole, scale_groups
from objectives.progress import Progress
from objectives.propagation import FirstRound, prefix_sizes, round_again
from objectives.quantized_blocks import FoldedScales, LayerResult, QuantizedBlocks
from objectives.suitability import parts_by_setting
from quant.layers import QuantizedLinear, quantize_sets
from quant.linears import LinearInput, LinearSet, require_finite
from quant.plan import Plan
from quant.scheme import IntWeight
from quant.sizes import ModelSize, input_scale_bits, matrix_bits


@torch.inference_mode()
def quantize_model(
    model: Model,
    blocks: Sequence[Block],
    calibration: Calibration,
    plan: Plan,
    progress: Progress,
    kept: KeptBlocks,
    with_codes: bool = False,
) -> QuantizedBlocks:
    """Replace the weights of every covered Linear by their quantized values, and fold the scales that fold.

    Args:
        model: With its original weights, where they are put back (`Weights.restored`).
        blocks: Its roles.
        calibration: Its statistics.
        plan: How to quantize; it suits the blocks (`require_suitable`).
        progress: Told how far it is.
        kept: Blocks of the same plan that another process quantized before it died; those that take long are added.
        with_codes: Give the codes, too.

    Raises:
        QuantizationError: If a weight is not finite, naming the layer.
        DamagedEntryError: If the calibration cache is damaged; the weights are then partly replaced.
    """
    parts: list[QuantizedBlocks] = []
    prefixes = {size: calibration.followed(size) for size in prefix_sizes(blocks, plan)}
    for done, block in enumerate(blocks, 1):
        with model.weights.changing(block.name):
            done_before = kept.read(block)
            if done_before is not None:
                made = _put_back(done_before, block, prefixes)
            else:
                started = perf_counter()
                made = _quantized(model, block, calibration, prefixes, plan, with_codes)
                kept.keep(block, made, perf_counter() - started)
        parts.append(made)
        progress(f"quantizing {plan.label()}", done, len(blocks))
    return QuantizedBlocks(
        layers=tuple(layer for part in parts for layer in part.layers),
        codes={name: codes for part in parts for name, codes in part.codes.items()},
        folded={name: folded for part in parts for name, folded in part.folded.items()},
    )


def _put_back(kept: KeptBlock, block: Block, prefixes: Mapping[int, QuantizedPrefix]) -> QuantizedBlocks:
    """Put back what is kept of a block, and have the prefixes pass it as they do where it is quantized."""
    for prefix in prefixes.values():
        prefix.enter(block)
    made = kept.put_back(block)
    for prefix in prefixes.values():
        prefix.advance(block)
    return made


def _quantized(
    model: Model,
    block: Block,
    calibration: Calibration,
    prefixes: Mapping[int, QuantizedPrefix],
    plan: Plan,
    with_codes: bool,
) -> QuantizedBlocks:
    """Quantize one block in its place."""
    layers: dict[str, LayerResult] = {}
    codes: dict[str, IntWeight] = {}
    folded: dict[str, FoldedScales] = {}
    statistics = _read_statistics(block, calibration, plan)
    tokens = {size: expert_tokens(block, read.inputs) for size, read in statistics.items()}
    for linear, quantized, divisor in _quantize_following(block, statistics, prefixes, plan, model.stored_dtype):
        own = tokens.get(plan.setting_for(linear.name).n_calib, {}).get(linear.name)
        share = None if own is None else 1.0 if calibration.route_all else own_share(own, linear.shape[1])
        layers[linear.name] = _layer_result(block, linear, quantized, own, share)
        if with_codes and quantized.codes is not None:
            codes[linear.name] = quantized.codes.cpu()
            folded[linear.name] = FoldedScales(inputs=quantized.scale, outputs=divisor)
    return QuantizedBlocks(layers=tuple(layers[linear.name] for linear in block.linears), codes=codes, folded=folded)


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
