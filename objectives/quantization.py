"""Quantize a model in place, block by block, and count what it takes.

Responsible for walking from roles and statistics to weights. Holds one block's statistics at a time. May assume that
the model has its original weights when it starts; who calls puts them back (`models.weights_restored`). With scales
that fold, what it leaves in memory is the model that is stored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.calibration.calibration import Calibration
from objectives.calibration.recording import BlockStatistics
from objectives.errors import InputError
from objectives.model.folding import fold, norm_weight
from objectives.model.loading import Model
from objectives.model.roles import Block, InputSite, LinearRole
from objectives.progress import Progress
from quant.grid import IntWeight
from quant.layers import LinearInput, LinearSet, QuantizedLinear, quantize_set, require_finite
from quant.methods import Setting
from quant.sizes import input_scale_bits, matrix_bits


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """What the search chose for one Linear: the exponent, and the loss of nearest rounding and of the choice."""

    name: str
    alpha: float
    nearest_loss: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What a model takes when quantized.

    Attributes:
        bits_per_weight: Over the weights of the decoder blocks.
        model_bytes: Everything, embeddings and head included.
    """

    bits_per_weight: float
    model_bytes: int


Keep = Callable[[LinearRole, IntWeight], None]
"""Told the codes of every Linear that is stored as such."""


@torch.inference_mode()
def quantize_model(
    blocks: Sequence[Block],
    calibration: Calibration,
    setting: Setting,
    stored: torch.dtype,
    progress: Progress,
    keep: Keep | None = None,
) -> list[LayerResult]:
    """Replace the weights of every covered Linear by their quantized values, and fold the scales that fold.

    Args:
        blocks: The model's roles.
        calibration: Its statistics.
        setting: How to quantize.
        stored: The type the model is stored in.
        progress: Told how far it is.
        keep: Told the codes.

    Raises:
        QuantizationError: If a weight is not finite, naming the layer.
        DamagedEntryError: If the calibration cache is damaged; the weights are then partly replaced.
    """
    results: list[LayerResult] = []
    for done, block in enumerate(blocks, 1):
        statistics = calibration.read(block, setting.n_calib)
        found: dict[str, LayerResult] = {}
        divisors: dict[str, Tensor] = {}
        # In the order in which the model computes: what comes after a broken weight is broken, too.
        for site in block.sites:
            require_finite(_linear_set(site, statistics, divisors, stored))
        # Backwards: the rows of a Linear are rounded after they have taken the scale of what they feed.
        for site in reversed(block.sites):
            quantized = quantize_set(_linear_set(site, statistics, divisors, stored), setting)
            for linear, result in zip(site.linears, quantized, strict=True):
                linear.set_weight(result.weight)
                found[linear.name] = _layer_result(result)
                if keep is not None and result.codes is not None:
                    keep(linear, result.codes)
            scale = quantized[0].scale
            if scale is not None and not setting.scales_at_run_time:
                divisors |= fold(site, scale, stored)
        results += [found[linear.name] for linear in block.linears]
        progress(f"quantizing {setting.label()}", done, len(blocks))
    return results


def require_suitable(blocks: Sequence[Block], setting: Setting, allow_partial_groups: bool = False) -> None:
    """Refuse a group size that the method reads and that does not divide the inputs of every quantized Linear.

    Raises:
        InputError: Naming the widths in the way and the usual sizes that suit.
    """
    size = setting.group_size
    widths = sorted({site.inputs for block in blocks for site in block.sites})
    if setting.definition.per_row or allow_partial_groups or all(width % size == 0 for width in widths):
        return
    suitable = suitable_group_sizes(blocks)
    raise InputError(
        f"group size {size} does not divide the input widths {', '.join(map(str, widths))} of this model; "
        f"use {', '.join(map(str, suitable)) or 'one of their divisors'}, or --allow-partial-groups"
    )


def suitable_group_sizes(blocks: Sequence[Block]) -> list[int]:
    """Which of 32, 64, 128 and 256 divide the inputs of every quantized Linear."""
    widths = {site.inputs for block in blocks for site in block.sites}
    return [size for size in (32, 64, 128, 256) if all(width % size == 0 for width in widths)]


def model_size(model: Model, blocks: Sequence[Block], setting: Setting | None) -> ModelSize:
    """Size under a setting; None is the model as it is, every weight in its own type."""
    own_bits = 8 * model.dtype.itemsize
    covered = bits = 0
    for linear in (linear for block in blocks for linear in block.linears):
        outputs, inputs = linear.shape
        covered += outputs * inputs
        if setting is None:
            bits += own_bits * outputs * inputs
        else:
            bits += matrix_bits(outputs, inputs, setting.grid(model.dtype), setting.kept_rows(outputs))
            bits += input_scale_bits(inputs, setting)
    uncovered = sum(size for block in blocks for size in block.uncovered.values())
    bits += own_bits * uncovered
    outside = sum(parameter.numel() for parameter in model.module.parameters()) - covered - uncovered
    return ModelSize(bits_per_weight=bits / (covered + uncovered), model_bytes=(bits + own_bits * outside) // 8)


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


def _layer_result(quantized: QuantizedLinear) -> LayerResult:
    return LayerResult(
        name=quantized.name,
        alpha=quantized.alpha,
        nearest_loss=quantized.nearest_loss,
        loss=quantized.loss,
    )
