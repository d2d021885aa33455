"""Find the decoder blocks of a model: their Linears by role, the fused ones taken apart, and which scales fold.

Responsible for what is guessed by the tables of `layouts` and then asked of each block (`probing`): a scale folds where
folding one changes nothing that the block puts out. What is not known is listed as not covered. May assume a
transformers model whose decoder blocks are one `nn.ModuleList`.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from objectives.errors import InputError
from objectives.model.commuting import folding_sites
from objectives.model.copies import experts_of_block, site_of_block, without_shared
from objectives.model.experts import expert_sites, find_experts, listed_experts, unknown_experts
from objectives.model.layouts import (
    FUSED_GATE_UP,
    FUSED_QKV,
    SITES,
    SUPPORTED,
    UNGATED,
    UNUSABLE,
    WHOLE,
    Role,
    Rows,
    activation,
    gate_up_arrangements,
    head_dims,
    qkv_arrangements,
)
from objectives.model.probing import Call, Probe, read_calls
from objectives.model.roles import (
    Block,
    Experts,
    InputSite,
    LinearRole,
    largest_uncovered,
    uncovered_share,
)
from objectives.model.weights import HeldWeights, Weights

log = logging.getLogger(__name__)

MOST_UNCOVERED = 0.05
LONGEST_REASON = 200


def find_blocks(module: Any, allow_partial: bool = False, weights: Weights | None = None) -> list[Block]:
    """Return the decoder blocks of a causal language model.

    Args:
        module: A `PreTrainedModel`.
        allow_partial: Accept blocks of which more than 5 % of the weights stay in 16 bit.
        weights: Where its weights are; None for all of them in memory.

    Raises:
        InputError: If the layout is not known, naming what is in the way.
    """
    config, prefix, layers = _decoder(module)
    calls = read_calls(module, list(layers))
    shared = shared_parameters(module)
    weights = weights or HeldWeights()
    blocks = []
    for index, (layer, call) in enumerate(zip(layers, calls, strict=True)):
        name = f"{prefix}.{index}"
        with weights.at_hand(name):
            blocks.append(_block(index, name, layer, call, config, shared))
    _require_coverage(module, blocks, allow_partial)
    return blocks


def named_blocks(module: Any, allow_partial: bool = False) -> list[Block]:
    """Return the decoder blocks as they are named, without running any: no scale folds, and weights need no data.

    Args:
        module: As for `find_blocks`.
        allow_partial: As there.

    Raises:
        InputError: If the layout is not known, naming what is in the way.
    """
    config, prefix, layers = _decoder(module)
    shared = shared_parameters(module)
    blocks = [_asked(index, f"{prefix}.{index}", layer, None, config, shared) for index, layer in enumerate(layers)]
    _require_coverage(module, blocks, allow_partial)
    return blocks


def decoder_layers(module: Any) -> tuple[str, nn.ModuleList]:
    """Return a model's decoder blocks, with the name of their list.

    Raises:
        InputError: If it has none that are known.
    """
    config = module.config.get_text_config()
    if not getattr(config, "num_attention_heads", None):
        raise InputError(f"{type(module).__name__} has no attention heads; {SUPPORTED}")
    return _decoder_layers(module, config.num_hidden_layers)


def _decoder(module: Any) -> tuple[Any, str, nn.ModuleList]:
    """Return a model's text configuration, and its decoder blocks with the name of their list."""
    prefix, layers = decoder_layers(module)
    config = module.config.get_text_config()
    for index, layer in enumerate(layers):
        _require_linears(f"{prefix}.{index}", layer)
    activation(config)
    return config, prefix, layers


def _decoder_layers(module: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    lists = [
        (name, child)
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if not lists:
        raise InputError(f"{type(module).__name__} has no list of {count} decoder blocks; {SUPPORTED}")
    return max(lists, key=lambda named: sum(parameter.numel() for parameter in named[1].parameters()))


def _require_linears(name: str, layer: nn.Module) -> None:
    conv = [child for child, module in layer.named_modules() if isinstance(module, Conv1D)]
    if conv:
        raise InputError(f"{name}.{conv[0]} is a Conv1D (GPT-2 layout), which is not supported; {SUPPORTED}")


def shared_parameters(module: nn.Module) -> set[int]:
    """Return the ids of parameters that stand in several places: changing one place would change the others."""
    places = Counter(
        id(parameter)
        for child in {id(child): child for child in module.modules()}.values()
        for parameter in child.parameters(recurse=False)
    )
    modules = Counter(id(child) for _, child in module.named_modules(remove_duplicate=False))
    repeated = (child for child in module.modules() if modules[id(child)] > 1)
    return {key for key, count in places.items() if count > 1} | {
        id(parameter) for child in repeated for parameter in child.parameters(recurse=False)
    }


def _block(index: int, name: str, layer: nn.Module, call: Call | None, config: Any, shared: set[int]) -> Block:
    if call is not None:
        try:
            return _asked(index, name, layer, Probe(layer, call), config, shared)
        except UNUSABLE as error:
            reason = " ".join(str(error).split())[:LONGEST_REASON]
            log.warning("%s cannot be run by itself (%s): none of its scales fold", name, reason)
    # A block that is not run says nothing; it is taken as it is named.
    return _asked(index, name, layer, None, config, shared)


def _asked(index: int, name: str, layer: nn.Module, probe: Probe | None, config: Any, shared: set[int]) -> Block:
    probed = layer if probe is None else probe.layer
    named = list(_linears(name, probed, probe, config))
    listed = list(listed_experts(name, probed, named))
    own_sites = [site for held in listed for site in chain(*expert_sites(held))]
    of_experts = {linear.name for site in own_sites for linear in site.linears}
    others = [linear for linear in named if linear.name not in of_experts]
    times = Counter(linear.role for linear in others)
    # Of several Linears of one role (routed experts) none reads what the block reads.
    by_role = {linear.role: linear for linear in others if times[linear.role] == 1}
    experts = [*find_experts(name, probed), *listed]
    sites = _with_experts(list(_sites(name, by_role)), experts)
    covered = {id(linear.parameter) for site in sites for linear in site.linears}
    uncovered = {
        f"{name}.{child}": parameter.numel()
        for child, parameter in probed.named_parameters()
        if parameter.dim() > 1 and id(parameter) not in covered and not _is_bias(child)
    }
    if probe is not None:
        sites = folding_sites(name, sites, probe, config)
    places = {id(module): path for path, module in probed.named_modules()}

    def own(module: nn.Module) -> nn.Module:
        return layer.get_submodule(places[id(module)])

    return Block(
        index=index,
        name=name,
        sites=tuple(without_shared(site_of_block(site, own), shared) for site in sites),
        activation=activation(config),
        uncovered=uncovered,
        experts=tuple(experts_of_block(held, own) for held in experts),
    )


def _is_bias(parameter: str) -> bool:
    """Return whether a parameter of two dimensions holds the biases of experts."""
    return parameter.endswith("_bias")


def _with_experts(sites: Sequence[InputSite], experts: Sequence[Experts]) -> list[InputSite]:
    """Return the sites with those of experts in the order in which the block computes: what feeds a down before it."""
    downs = [site for site in sites if site.linears[0].role in ("down", "fc2")]
    firsts = [site for site in sites if site not in downs]
    for held in experts:
        reading, writing = expert_sites(held)
        firsts += reading
        downs += writing
    return [*firsts, *downs]


def _linears(name: str, layer: nn.Module, probe: Probe | None, config: Any) -> Iterator[LinearRole]:
    linears = {path: module for path, module in layer.named_modules() if isinstance(module, nn.Linear)}
    whole = {path: WHOLE[leaf] for path in linears if (leaf := path.rpartition(".")[2]) in WHOLE}
    # Without a gate, up is what the activation is applied to, as fc1 is.
    ungated = "gate" not in whole.values() and not any(path.rpartition(".")[2] in FUSED_GATE_UP for path in linears)
    for path, module in linears.items():
        leaf = path.rpartition(".")[2]
        if path in whole:
            role = UNGATED.get(whole[path], whole[path]) if ungated else whole[path]
            yield LinearRole(name=f"{name}.{path}", role=role, module=module)
        elif leaf in FUSED_QKV | FUSED_GATE_UP:
            reader = _only(linears, whole, "o" if leaf in FUSED_QKV else "down")
            if reader is not None:
                for role, rows in _rows(module, leaf, reader, layer, probe, config).items():
                    own = rows.to(module.weight.device)
                    yield LinearRole(name=f"{name}.{path}:{role}", role=role, module=module, rows=own)


def _only(linears: Mapping[str, nn.Linear], roles: Mapping[str, Role], role: Role) -> tuple[str, nn.Linear] | None:
    """Return the one Linear of a role with its path; None where there are several or none."""
    paths = [path for path, own in roles.items() if own == role]
    return (paths[0], linears[paths[0]]) if len(paths) == 1 else None


def _rows(
    module: nn.Linear, leaf: str, reader: tuple[str, nn.Linear], layer: nn.Module, probe: Probe | None, config: Any
) -> Rows:
    """Take a fused projection apart, as the block uses it; nothing where it does so in no known way."""
    path, reads = reader
    if leaf in FUSED_QKV:
        attention = layer.get_submodule(path.rpartition(".")[0])
        possible = qkv_arrangements(module.out_features, reads.in_features, head_dims(attention, config))
        fits = (rows for rows in possible if probe is None or probe.is_qkv(module, rows, reads))
    else:
        if module.out_features != 2 * reads.in_features:
            return {}
        possible = gate_up_arrangements(module.out_features)
        fits = (rows for rows in possible if probe is None or probe.multiplies(module, rows["up"], reads))
    return next(fits, {})


def _sites(name: str, by_role: Mapping[Role, LinearRole]) -> Iterator[InputSite]:
    for kind, roles in SITES:
        linears = tuple(by_role[role] for role in roles if role in by_role)
        if linears:
            yield InputSite(
                name=f"{name}:{'+'.join(roles)}",
                kind=kind,
                linears=linears,
                inputs=linears[0].shape[1],
                producer=None,
            )


def _require_coverage(module: nn.Module, blocks: Sequence[Block], allow_partial: bool) -> None:
    uncovered = {name: size for block in blocks for name, size in block.uncovered.items()}
    none_covered = not any(True for block in blocks for _ in block.linears)
    share = uncovered_share(blocks)
    if none_covered or (share > MOST_UNCOVERED and not allow_partial):
        remedy = (
            "which is all there is to quantize here"
            if none_covered
            else f"--allow-partial would leave these in 16 bit and quantize the other {1 - share:.0%}"
        )
        reason = _experts_in_the_way(module, blocks) or f"{type(module).__name__} is no supported layout; {SUPPORTED}"
        raise InputError(
            f"{share:.0%} of the block weights are not Linears that can be quantized (largest: "
            f"{largest_uncovered(uncovered)}), and at most 5 % may stay in 16 bit: {reason}; {remedy}"
        )


def _experts_in_the_way(module: nn.Module, blocks: Sequence[Block]) -> str | None:
    """Name the first experts that cannot be quantized; None where it is something else that cannot."""
    covered = {id(linear.parameter) for block in blocks for linear in block.linears}
    reasons = (unknown_experts(block.name, module.get_submodule(block.name), covered) for block in blocks)
    return next((reason for reason in reasons if reason is not None), None)
