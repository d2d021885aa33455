"""What a study of a model will cost, counted from shapes: bytes of the cache, memory, and operations of each phase.

Responsible for counting alone; nothing is run. May assume that every Linear is quantized by one setting. Bytes are
those of `objectives.calibration`, operations those of the products that dominate. Shape letters: `O` outputs, `I`
inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from objectives.calibration.calibration import sizes_to
from objectives.calibration.entries import stored_size
from objectives.calibration.recording import statistics_bytes
from objectives.model.roles import Block
from quant.setting import Setting


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Counted costs of a model's study.

    Attributes:
        weights: Of the decoder blocks that are quantized.
        parameters: Of the whole model.
        entry_bytes: On the disk, of the statistics of each calibration size: what a trial reads.
        entries: How many are kept on the way to the largest size.
        recording_bytes: Memory of the sums of all blocks at once.
        block_recording_bytes: Memory of those of the largest block: the least that calibration can do with.
        calibrating: Operations for all calibration tokens.
        quantizing: Operations of one trial's search and rounding.
        scoring: Operations of one trial on all evaluation tokens, divergence from full precision included.
    """

    weights: int
    parameters: int
    entry_bytes: int
    entries: int
    recording_bytes: int
    block_recording_bytes: int
    calibrating: float
    quantizing: float
    scoring: float


def count(
    module: nn.Module,
    blocks: Sequence[Block],
    setting: Setting,
    calibration_tokens: int,
    scored_tokens: int,
    route_all: bool = False,
) -> Costs:
    """Count the costs of a study whose trials are like `setting`.

    Args:
        module: The model; its tensors need no data.
        blocks: Its roles.
        setting: Its `n_calib` is the largest calibration size.
        calibration_tokens: In the samples of that size.
        scored_tokens: In the evaluation text.
        route_all: Whether every expert reads all calibration tokens.
    """
    shapes = [linear.shape for block in blocks for linear in block.linears]
    sites = [site.inputs for block in blocks for site in block.sites]
    weights = sum(map(prod, shapes))
    head = module.get_output_embeddings().weight.numel()  # type: ignore[operator]
    memory = [statistics_bytes(block) for block in blocks]
    return Costs(
        weights=weights,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        entry_bytes=stored_size(blocks),
        entries=len(sizes_to(setting.n_calib)),
        recording_bytes=sum(memory),
        block_recording_bytes=max(memory),
        calibrating=2.0 * calibration_tokens * _each_token(module, blocks, route_all),
        quantizing=_quantizing(setting, shapes, sites),
        scoring=2.0 * scored_tokens * (_run(module, blocks) + 2 * head),
    )


def _run(module: nn.Module, blocks: Sequence[Block]) -> float:
    """Count the weights that a token meets: of experts those that it is routed to."""
    shares = _shares(module, blocks)
    return sum(prod(linear.shape) * shares[linear.name] for block in blocks for linear in block.linears)


def _each_token(module: nn.Module, blocks: Sequence[Block], route_all: bool) -> float:
    """Count what calibration multiplies for a token.

    The weights, those of fused experts once more for their statistics, and the Gram matrix of each input that reads it.
    """
    sites = [site for block in blocks for site in block.sites]
    routed = _shares(module, blocks)
    shares = dict.fromkeys(routed, 1.0) if route_all else routed
    traced = [linear for site in sites for linear in site.linears if linear.expert is not None]
    again = sum(prod(linear.shape) * shares[linear.name] for linear in traced)
    return _run(module, blocks) + again + sum(site.inputs**2 * shares[site.linears[0].name] for site in sites)


def _shares(module: nn.Module, blocks: Sequence[Block]) -> dict[str, float]:
    """Return the share of the tokens that reach each Linear, where all experts get as many."""
    config = module.config.get_text_config()  # type: ignore[operator, union-attr]
    shares = {linear.name: 1.0 for block in blocks for linear in block.linears}
    for held in (held for block in blocks for held in block.experts):
        chosen = float(getattr(config, "num_experts_per_tok", len(held.experts))) / len(held.experts)
        for expert in held.experts:
            shares |= dict.fromkeys((expert.gate.name, expert.up.name, expert.down.name), chosen)
    return shares


def _quantizing(setting: Setting, shapes: Sequence[tuple[int, int]], sites: Sequence[int]) -> float:
    """Count `O I²` for each candidate's loss, whose product skips half of the matrix, and for spreading errors."""
    product = float(sum(outputs * inputs**2 for outputs, inputs in shapes))
    # Nearest rounding and the final codes have a loss of their own.
    candidates = 2 + (setting.n_grid + 1 if setting.definition.salience is not None else 0)
    factor = float(sum(inputs**3 for inputs in sites))
    return candidates * product + (product + factor if setting.rounding == "gptq" else 0.0)
