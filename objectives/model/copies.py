"""Roles that were found in a copy of a block, as roles of the block itself.

Responsible for putting the model's own modules into the place of the copy's, and for folding nothing into a parameter
that stands elsewhere, too. May assume that both blocks have the same modules.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from objectives.model.roles import Expert, Experts, FusedExperts, InputSite, LinearRole, NormRole


def site_of_block(site: InputSite, own: Callable[[nn.Module], nn.Module]) -> InputSite:
    """Return a site of the copy that was asked as one of the model's own block."""
    linears = tuple(replace(linear, module=own(linear.module)) for linear in site.linears)
    producer = site.producer
    if isinstance(producer, NormRole):
        readers = tuple(own(reader) for reader in producer.readers)
        producer = replace(producer, module=own(producer.module), readers=readers)
    elif producer is not None:
        producer = replace(producer, module=own(producer.module))
    return replace(site, linears=linears, producer=producer)


def experts_of_block(experts: Experts, own: Callable[[nn.Module], nn.Module]) -> Experts:
    """Return experts of the copy as those of the model's own block."""

    def moved(linear: LinearRole) -> LinearRole:
        return replace(linear, module=own(linear.module))

    copied = tuple(
        Expert(gate=moved(expert.gate), up=moved(expert.up), down=moved(expert.down)) for expert in experts.experts
    )
    if isinstance(experts, FusedExperts):
        return replace(experts, module=own(experts.module), experts=copied)
    return replace(experts, experts=copied)


def without_shared(site: InputSite, shared: set[int]) -> InputSite:
    """Return a site that does not fold where folding would change a parameter that stands elsewhere, too."""
    if site.producer is None:
        return site
    changed = [*(linear.module for linear in site.linears), site.producer.module]
    changed += site.producer.readers if isinstance(site.producer, NormRole) else ()
    if any(id(parameter) in shared for module in changed for parameter in module.parameters(recurse=False)):
        return replace(site, producer=None, tie=None)
    return site
