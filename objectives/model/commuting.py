"""Ask a decoder block which input scales fold: those that what lies between a scale and its inverse commutes with.

Responsible for guessing what could take the scale of an input, for folding a random one into it, and for believing it
only where the block puts out the same. May assume a probe's copy of the block, in float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from objectives.model.folding import changed_by, fold, norm_weight
from objectives.model.layouts import AFTER_LINEAR, Role, head_dims, norm_offset, ties
from objectives.model.probing import SEED, Probe, Seen, same
from objectives.model.roles import InputSite, LinearRole, NormRole, scale_groups
from objectives.model.weights import weights_restored
from quant.scaling.salience import Kind

# Scales from 1/256 to 256: a clamp that the numbers of a short text do not reach is reached.
MOST_DOUBLINGS = 8
WRITERS: tuple[Role, ...] = ("o", "down", "fc2")


def folding_sites(name: str, sites: Sequence[InputSite], probe: Probe, config: Any) -> list[InputSite]:
    """Return the sites, each with what takes its scale; without where folding one changes what the block puts out.

    Args:
        name: The block's.
        sites: Of the probe's copy of the block, with nothing that takes a scale.
        probe: Runs the copy.
        config: Of the model.
    """
    norms = _norms_before(name, sites, probe)
    linears = [linear for site in sites for linear in site.linears]
    possible = [_possible(site, linears, norms, probe.layer, name, config) for site in sites]
    watched = list(dict.fromkeys(site.linears[0].module for site in sites if site.linears[0].role in WRITERS))
    before = probe.run(watched)
    likely = [guesses[0] for guesses in possible]
    # Nothing can be told of a block that is not finite, and nothing can be quantized: whoever tries is told which
    # weight is broken.
    if not before.finite or _unchanged(probe, likely, before, watched):
        return likely
    chosen = list(sites)
    for together in _units(likely):
        for number in range(max(len(possible[index]) for index in together)):
            guess = {index: possible[index][min(number, len(possible[index]) - 1)] for index in together}
            if _unchanged(probe, list(guess.values()), before, watched):
                for index, site in guess.items():
                    chosen[index] = site
                break
    return chosen if _unchanged(probe, chosen, before, watched) else list(sites)


def _units(sites: Sequence[InputSite]) -> list[list[int]]:
    """Return the places of the sites that fold together or not at all: behind one norm, and of experts of one kind."""
    units: dict[str, list[int]] = {}
    for index, site in enumerate(sites):
        shared = site.producer.name if isinstance(site.producer, NormRole) else site.pool
        units.setdefault(shared or site.name, []).append(index)
    return list(units.values())


def _possible(
    site: InputSite,
    linears: Sequence[LinearRole],
    norms: Mapping[str, NormRole],
    layer: nn.Module,
    block: str,
    config: Any,
) -> list[InputSite]:
    """Return the site with each way in which a scale of its input might fold, the likeliest first; as it is without."""
    roles = tuple(linear.role for linear in site.linears)
    if roles not in AFTER_LINEAR:
        return [replace(site, producer=norms.get(site.name))]
    before = _linear_before(site.linears[0], AFTER_LINEAR[roles], linears)
    if before is None:
        return [site]
    path = site.linears[0].owner.removeprefix(block).removeprefix(".")
    widths = head_dims(layer.get_submodule(path), config) if roles == ("o",) else []
    tied = [replace(site, producer=before, tie=tie) for tie in ties(site.inputs, before.shape[0], widths)]
    return tied or [site]


def _linear_before(linear: LinearRole, role: Role, linears: Sequence[LinearRole]) -> LinearRole | None:
    """Return the Linear of a role that feeds another: that of the same owner, or the only one of the block."""
    candidates = [other for other in linears if other.role == role]
    owned = [other for other in candidates if other.owner == linear.owner]
    return next(iter(owned or (candidates if len(candidates) == 1 else ())), None)


def _norms_before(block: str, sites: Sequence[InputSite], probe: Probe) -> dict[str, NormRole]:
    """Return the norm whose output a site reads as it is, by the name of the site."""
    offsets = {path: norm_offset(module) for path, module in probe.layer.named_modules() if "norm" in _kind(module)}
    outputs: dict[int, str] = {}
    read: dict[nn.Module, int] = {}
    kept: list[Tensor] = []
    handles = []

    def keep_output(path: str) -> Any:
        def hook(_: nn.Module, args: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                # Kept, so that no other tensor gets its place.
                kept.append(out)
                outputs[out.data_ptr()] = path

        return hook

    def keep_input(module: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                kept.append(args[0])
                read[module] = args[0].data_ptr()

        return hook

    for path, offset in offsets.items():
        if offset is not None:
            handles.append(probe.layer.get_submodule(path).register_forward_hook(keep_output(path)))
    modules = list(dict.fromkeys(linear.module for site in sites for linear in site.linears))
    others = [module for module in probe.layer.modules() if module not in modules and _multiplies(module)]
    readers = {site.name: _reader(site, probe.layer, block) for site in sites}
    watched = dict.fromkeys((*readers.values(), *others))
    handles += [module.register_forward_pre_hook(keep_input(module)) for module in watched]
    try:
        probe.run()
    finally:
        for handle in handles:
            handle.remove()
    norms: dict[str, NormRole] = {}
    for site in sites:
        path = outputs.get(read.get(readers[site.name], 0))
        offset = None if path is None else offsets[path]
        if path is not None and offset is not None:
            norms[site.name] = NormRole(
                name=f"{block}.{path}",
                module=probe.layer.get_submodule(path),
                offset=offset,
                readers=tuple(module for module in others if outputs.get(read.get(module, 0)) == path),
            )
    return _of_one_kind(sites, norms)


def _reader(site: InputSite, layer: nn.Module, block: str) -> nn.Module:
    """Return the module of a block that reads what a site does.

    Experts of a list read copies of rows that what holds the list has read, all of them.
    """
    if site.pool is None or site.linears[0].expert is not None:
        return site.linears[0].module
    listed = site.pool.partition(":")[0].removeprefix(block).removeprefix(".")
    return layer.get_submodule(listed.rpartition(".")[0])


def _of_one_kind(sites: Sequence[InputSite], norms: Mapping[str, NormRole]) -> dict[str, NormRole]:
    """Leave out norms that feed attention and an MLP at once: those have no salience in common."""
    kinds: dict[str, set[Kind]] = {}
    for site in sites:
        if site.name in norms:
            kinds.setdefault(norms[site.name].name, set()).add(site.kind)
    return {name: norm for name, norm in norms.items() if len(kinds[norm.name]) == 1}


def _multiplies(module: nn.Module) -> bool:
    """Return whether a module has a matrix of its own, as Linears and routers do."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 2


def _kind(module: nn.Module) -> str:
    return type(module).__name__.lower()


@torch.no_grad()
def _unchanged(probe: Probe, sites: Sequence[InputSite], before: Seen, watched: Sequence[nn.Module]) -> bool:
    """Fold a random scale into every site that has something to take it; returns whether the block puts out the same.

    Powers of two are folded without rounding.
    """
    with weights_restored([module for site in sites for module in changed_by(site)]):
        divisors: dict[str, Tensor] = {}
        for number, group in enumerate(reversed(scale_groups(sites))):
            scale = _scale(group[0], number)
            for linear in (linear for site in group for linear in site.linears):
                rows = divisors.pop(linear.name, torch.ones(1, device=scale.device))
                linear.set_weight(linear.weight() / rows[:, None] * scale)
            if group[0].folds:
                divisors |= fold(group[0], scale, torch.float32)
        for site in sites:
            # A producer whose own input is not among the sites that are asked.
            if isinstance(site.producer, LinearRole) and site.producer.name in divisors:
                producer = site.producer
                producer.set_weight(producer.weight() / divisors.pop(producer.name)[:, None])
        return same(before, probe.run(watched))


def _scale(site: InputSite, seed: int) -> Tensor:
    device = site.linears[0].weight().device
    if not site.folds:
        return torch.ones(site.inputs, device=device)
    doublings = torch.randint(
        -MOST_DOUBLINGS, MOST_DOUBLINGS + 1, (site.inputs,), generator=torch.Generator().manual_seed(SEED + seed)
    ).to(device)
    scale = doublings.float() if site.tie is None else site.tie.average(doublings.float()).round()
    norm = norm_weight(site, torch.float32)
    return scale.exp2() if norm is None else norm.representable(scale.exp2())
