"""Statistics of experts that saw few tokens: shrunk towards what all experts of a block have in common.

Responsible for what quantizing reads of experts; what is recorded and stored are the statistics of an expert's own
tokens. May assume statistics of one block whose Gram matrices are packed. The formula is in docs/methods.md (mixtures
of experts).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace

import torch

from objectives.calibration.recording import BlockStatistics
from objectives.model.roles import Block
from quant.statistics import (
    InputStatistics,
    OutputStatistics,
    Statistics,
    merge,
    pack_symmetric,
    shrunk,
    unpack_symmetric,
)

FORMULA = 2
"""Version of the target; in the first one hidden neurons of two experts were taken for the same by their number."""
KAPPA_PER_INPUT = 1.0
"""κ for each input of a matrix: so many tokens of an expert's own are worth as much as the pool."""


def own_share(tokens: int, inputs: int) -> float:
    """Return `n/(n + κ)`, what `tokens` of an expert's own count for in the statistics of a matrix of `inputs`."""
    return tokens / (tokens + KAPPA_PER_INPUT * inputs) if tokens else 0.0


def expert_tokens(block: Block, inputs: Mapping[str, InputStatistics]) -> dict[str, int]:
    """Return how many tokens the expert of a Linear read, by name of the Linear; only those of experts."""
    sites = (site for site in block.sites if site.pool is not None)
    return {linear.name: inputs[site.name].tokens for site in sites for linear in site.linears}


def shrunk_block(block: Block, statistics: BlockStatistics) -> BlockStatistics:
    """Return statistics of a block, those of experts shrunk."""
    inputs, outputs = shrunk_inputs(block, statistics.inputs), shrunk_outputs(block, statistics.outputs)
    return replace(statistics, inputs=inputs, outputs=outputs)


def of_all_tokens(block: Block, statistics: BlockStatistics) -> BlockStatistics:
    """Return statistics that were recorded of all tokens, each expert's counted as the tokens that it is sent.

    Nothing else has seen more than they have, so nothing is shrunk; but an expert that is used twice as often counts
    twice in what experts share.
    """
    inputs, outputs = dict(statistics.inputs), dict(statistics.outputs)
    for site in block.sites:
        for linear in site.linears if site.pool is not None else ():
            tokens = statistics.routed[linear.owner]
            inputs[site.name] = replace(inputs[site.name], tokens=tokens)
            outputs[linear.name] = replace(outputs[linear.name], tokens=tokens)
    return replace(statistics, inputs=inputs, outputs=outputs)


@dataclass(frozen=True)
class Pool:
    """The same statistics of all experts of a block.

    Attributes:
        own_neurons: Whether they are of hidden neurons, which are others in each expert.
        widths: How many inputs the matrix has, by what has the statistics.
    """

    own_neurons: bool
    widths: dict[str, int]


def alike(pooled: Statistics) -> Statistics:
    """Return statistics of neurons that are all alike: as large as they are on average, and uncorrelated.

    The Gram matrix is `(tr G / I) 1`, which is the same however neurons are numbered (Ledoit and Wolf 2004, Journal of
    Multivariate Analysis 88, section 2).
    """
    tensors = {field.name: getattr(pooled, field.name) for field in fields(pooled) if field.name != "tokens"}
    even = {name: tensor.mean().expand_as(tensor) for name, tensor in tensors.items() if name != "gram"}
    if "gram" in tensors:
        diagonal = unpack_symmetric(tensors["gram"]).diagonal()
        even["gram"] = pack_symmetric(torch.diag(diagonal.mean().expand_as(diagonal)))
    return replace(pooled, **even)


def shrunk_inputs(block: Block, inputs: Mapping[str, InputStatistics]) -> dict[str, InputStatistics]:
    """Return statistics by site, those of experts shrunk towards the pool of the same site of all experts."""
    pools: dict[str, Pool] = {}
    for site in block.sites:
        if site.pool is not None:
            pool = pools.setdefault(site.pool, Pool(own_neurons=site.linears[0].role == "down", widths={}))
            pool.widths[site.name] = site.inputs
    return {**inputs, **_shrunk(inputs, pools.values())}


def shrunk_outputs(block: Block, outputs: Mapping[str, OutputStatistics]) -> dict[str, OutputStatistics]:
    """Return statistics by Linear, those of experts shrunk as those of their inputs are."""
    pools: dict[str, Pool] = {}
    for site in block.sites:
        for linear in site.linears if site.pool is not None else ():
            pool = pools.setdefault(f"{site.pool} {linear.role}", Pool(own_neurons=linear.role != "down", widths={}))
            pool.widths[linear.name] = site.inputs
    return {**outputs, **_shrunk(outputs, pools.values())}


def _shrunk(means: Mapping[str, Statistics], pools: Iterable[Pool]) -> dict[str, Statistics]:
    result: dict[str, Statistics] = {}
    for pool in pools:
        pooled = merge([means[name] for name in pool.widths])
        target = alike(pooled) if pool.own_neurons else pooled
        for name, inputs in pool.widths.items():
            result[name] = shrunk(means[name], target, own_share(means[name].tokens, inputs))
    return result
