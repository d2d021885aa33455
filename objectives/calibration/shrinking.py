"""Statistics of experts that saw few tokens: shrunk towards what all experts of a block have in common.

Responsible for what quantizing reads of experts; what is recorded and stored are the statistics of an expert's own
tokens. May assume statistics of one block. The formula is in docs/methods.md (mixtures of experts).
"""

from collections.abc import Mapping
from dataclasses import replace

from objectives.calibration.recording import BlockStatistics
from objectives.model.roles import Block
from quant.statistics import InputStatistics, OutputStatistics, Statistics, merge, shrunk

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


def shrunk_inputs(block: Block, inputs: Mapping[str, InputStatistics]) -> dict[str, InputStatistics]:
    """Return statistics by site, those of experts shrunk towards the pool of the same site of all experts."""
    pools: dict[str, list[str]] = {}
    for site in block.sites:
        if site.pool is not None:
            pools.setdefault(site.pool, []).append(site.name)
    widths = {site.name: site.inputs for site in block.sites}
    return {**inputs, **_shrunk(inputs, list(pools.values()), widths)}


def shrunk_outputs(block: Block, outputs: Mapping[str, OutputStatistics]) -> dict[str, OutputStatistics]:
    """Return statistics by Linear, those of experts shrunk as those of their inputs are."""
    pools: dict[str, list[str]] = {}
    for site in block.sites:
        for linear in site.linears if site.pool is not None else ():
            pools.setdefault(f"{site.pool} {linear.role}", []).append(linear.name)
    widths = {linear.name: site.inputs for site in block.sites for linear in site.linears}
    return {**outputs, **_shrunk(outputs, list(pools.values()), widths)}


def _shrunk(
    means: Mapping[str, Statistics], pools: list[list[str]], widths: Mapping[str, int]
) -> dict[str, Statistics]:
    result: dict[str, Statistics] = {}
    for names in pools:
        pooled = merge([means[name] for name in names])
        result |= {name: shrunk(means[name], pooled, own_share(means[name].tokens, widths[name])) for name in names}
    return result
