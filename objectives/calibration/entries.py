"""What an entry of the calibration cache holds of a block: names of tensors, and packed Gram matrices.

Responsible for the way from statistics to tensors and back. May assume statistics that were recorded of these roles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from objectives.calibration.recording import BlockStatistics
from objectives.model.roles import Block, Expert
from quant.statistics import InputStatistics, OutputStatistics, Statistics, merge, pack_symmetric


def stored_size(blocks: Sequence[Block]) -> int:
    """Return the bytes of one entry on the disk, but for vectors: packed float32 Gram matrices."""
    return sum(4 * (site.inputs // 2 + 1) * site.inputs for block in blocks for site in block.sites)


def part_name(block: Block) -> str:
    """Return what the statistics of a block are called in an entry."""
    return f"block-{block.index:03d}"


def flattened(statistics: BlockStatistics) -> dict[str, Tensor]:
    """Name the tensors of statistics whose Gram matrices are packed."""
    named: list[tuple[str, InputStatistics | OutputStatistics]] = [
        *statistics.inputs.items(),
        *statistics.outputs.items(),
    ]
    routed = {_routed_name(expert): torch.tensor(tokens) for expert, tokens in statistics.routed.items()}
    # Cloned: the format refuses tensors that share memory, as importances of two placements may.
    return routed | {
        f"{name}/{field.name}": torch.as_tensor(getattr(means, field.name)).clone()
        for name, means in named
        for field in fields(means)
    }


def merged(first: BlockStatistics, second: BlockStatistics) -> BlockStatistics:
    """Merge the statistics of two consecutive runs of samples."""
    return BlockStatistics(
        inputs={name: merge([means, second.inputs[name]]) for name, means in first.inputs.items()},
        outputs={name: merge([means, second.outputs[name]]) for name, means in first.outputs.items()},
        routed={name: tokens + second.routed[name] for name, tokens in first.routed.items()},
    )


def with_packed_grams(statistics: BlockStatistics) -> BlockStatistics:
    """Pack the Gram matrices: half the memory, and half the arithmetic where they are merged."""
    inputs = {name: replace(means, gram=pack_symmetric(means.gram)) for name, means in statistics.inputs.items()}
    return replace(statistics, inputs=inputs)


def restored(part: Mapping[str, Tensor], block: Block, device: torch.device) -> BlockStatistics:
    """Return the statistics of a block as they were stored, Gram matrices still packed."""
    return BlockStatistics(
        inputs={site.name: _means(InputStatistics, site.name, part, device) for site in block.sites},
        outputs={linear.name: _means(OutputStatistics, linear.name, part, device) for linear in block.linears},
        routed={expert.name: tokens_routed(part, expert) for experts in block.experts for expert in experts.experts},
    )


def tokens_routed(part: Mapping[str, Tensor], expert: Expert) -> int:
    """Return how many tokens the router sends an expert, of what is stored of its block."""
    name = _routed_name(expert.name)
    # Before every token could be sent through every expert, what one read was what it was sent.
    return int(part[name if name in part else f"{expert.down.name}/tokens"])


def _routed_name(expert: str) -> str:
    return f"{expert}/routed"


def _means(kind: type[Statistics], name: str, part: Mapping[str, Tensor], device: torch.device) -> Statistics:
    tensors = {field.name: part[f"{name}/{field.name}"] for field in fields(kind)}
    tokens = int(tensors.pop("tokens"))
    return kind(tokens=tokens, **{field: tensor.to(device) for field, tensor in tensors.items()})
