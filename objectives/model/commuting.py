"""Ask a decoder block which input scales fold: those that what lies between a scale and its inverse commutes with.

Responsible for guessing what could take the scale of an input, for folding a random one into it, and for believing it
only where the block puts out the same. May assume a probe's copy of the block, in float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from objectives.model.folding import fold, norm_weight
from objectives.model.layouts import AFTER_LINEAR, Role, head_dims, norm_offset, ties
from objectives.model.probing import SEED, Probe, Seen, same
from objectives.model.roles import InputSite, LinearRole, NormRole
from objectives.model.weights import weights_restored

# Scales from 1/256 to 256: a clamp that the numbers of a short text do not reach is reached.
MOST_DOUBLINGS = 8
WRITERS: tuple[Role, ...] = ("o", "down", "fc2")


def folding_sites(
    name: str, sites: Sequence[InputSite], by_role: Mapping[Role, LinearRole], probe: Probe, config: Any
) -> list[InputSite]:
    """Return the sites, each with what takes its scale; without where folding one changes what the block puts out.

    Args:
        name: The block's.
        sites: Of the probe's copy of the block, with nothing that takes a scale.
        by_role: Its Linears.
        probe: Runs the copy.
        config: Of the model.
    """
    norms = _norms_before(name, sites, probe)
    possible = [_possible(site, by_role, norms, probe.layer, name, config) for site in sites]
    watched = [site.linears[0].module for site in sites if site.linears[0].role in WRITERS]
    before = probe.run(watched)
    if not before.finite:
        # Nothing can be told of it, and nothing can be quantized: whoever tries is told which weight is broken.
        return [guesses[0] for guesses in possible]
    likely = [guesses[0] for guesses in possible]
    if _unchanged(probe, likely, before, watched):
        return likely
    chosen = [
        next((guess for guess in guesses if _unchanged(probe, [guess], before, watched)), site)
        for site, guesses in zip(sites, possible, strict=True)
    ]
    return chosen if _unchanged(probe, chosen, before, watched) else list(sites)


def _possible(
    site: InputSite,
    by_role: Mapping[Role, LinearRole],
    norms: Mapping[str, NormRole],
    layer: nn.Module,
    block: str,
    config: Any,
) -> list[InputSite]:
    """Return the site with each way in which a scale of its input might fold, the likeliest first; as it is without."""
    roles = tuple(linear.role for linear in site.linears)
    before = by_role.get(AFTER_LINEAR[roles]) if roles in AFTER_LINEAR else norms.get(site.name)
    if before is None:
        return [site]
    if not isinstance(before, LinearRole):
        return [replace(site, producer=before)]
    path = site.linears[0].name.removeprefix(f"{block}.").rpartition(".")[0]
    widths = head_dims(layer.get_submodule(path), config) if roles == ("o",) else []
    tied = [replace(site, producer=before, tie=tie) for tie in ties(site.inputs, before.shape[0], widths)]
    return tied or [site]


def _norms_before(block: str, sites: Sequence[InputSite], probe: Probe) -> dict[str, NormRole]:
    """Return the norm whose output a site reads as it is, by the name of the site."""
    offsets = {path: norm_offset(module) for path, module in probe.layer.named_modules() if "norm" in _kind(module)}
    outputs: dict[int, str] = {}
    read: dict[str, int] = {}
    kept: list[Tensor] = []
    handles = []

    def keep_output(path: str) -> Any:
        def hook(_: nn.Module, args: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                # Kept, so that no other tensor gets its place.
                kept.append(out)
                outputs[out.data_ptr()] = path

        return hook

    def keep_input(site: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            kept.append(args[0])
            read[site] = args[0].data_ptr()

        return hook

    for path, offset in offsets.items():
        if offset is not None:
            handles.append(probe.layer.get_submodule(path).register_forward_hook(keep_output(path)))
    handles += [site.linears[0].module.register_forward_pre_hook(keep_input(site.name)) for site in sites]
    try:
        probe.run()
    finally:
        for handle in handles:
            handle.remove()
    norms: dict[str, NormRole] = {}
    for site in sites:
        path, offset = outputs.get(read.get(site.name, 0)), None
        if path is not None:
            offset = offsets[path]
        if path is not None and offset is not None:
            norm = probe.layer.get_submodule(path)
            norms[site.name] = NormRole(name=f"{block}.{path}", module=norm, offset=offset)
    return norms


def _kind(module: nn.Module) -> str:
    return type(module).__name__.lower()


@torch.no_grad()
def _unchanged(probe: Probe, sites: Sequence[InputSite], before: Seen, watched: Sequence[nn.Module]) -> bool:
    """Fold a random scale into every site that has something to take it; returns whether the block puts out the same.

    Powers of two are folded without rounding.
    """
    modules = [linear.module for site in sites for linear in site.linears]
    modules += [site.producer.module for site in sites if site.producer is not None]  # type: ignore[misc]
    with weights_restored(modules):
        divisors: dict[str, Tensor] = {}
        for number, site in enumerate(reversed(sites)):
            scale = _scale(site, number)
            for linear in site.linears:
                rows = divisors.pop(linear.name, torch.ones(1, device=scale.device))
                linear.set_weight(linear.weight() / rows[:, None] * scale)
            if site.folds:
                divisors |= fold(site, scale, torch.float32)
        for site in sites:
            # A producer whose own input is not among the sites that are asked.
            if isinstance(site.producer, LinearRole) and site.producer.name in divisors:
                producer = site.producer
                producer.set_weight(producer.weight() / divisors.pop(producer.name)[:, None])
        return same(before, probe.run(watched))


def _scale(site: InputSite, seed: int) -> Tensor:
    device = site.linears[0].module.weight.device
    if not site.folds:
        return torch.ones(site.inputs, device=device)
    doublings = torch.randint(
        -MOST_DOUBLINGS, MOST_DOUBLINGS + 1, (site.inputs,), generator=torch.Generator().manual_seed(SEED + seed)
    ).to(device)
    scale = doublings.float() if site.tie is None else site.tie.average(doublings.float()).round()
    norm = norm_weight(site, torch.float32)
    return scale.exp2() if norm is None else norm.representable(scale.exp2())
