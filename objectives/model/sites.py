"""Sites: which Linears of a model must be stored alike.

Responsible for these as data, from the roles of the blocks. Linears of a common input share the scale that folds into
what produces it, slices share the codes of their module, and runtimes such as vLLM make one matrix of query, key and
value, and of gate and up, and have one kernel for all experts of a block. May assume blocks that `finding` made.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from objectives.model.layouts import Role
from objectives.model.roles import Block, LinearRole, scale_groups

FUSED: tuple[frozenset[Role], ...] = (frozenset({"q", "k", "v"}), frozenset({"gate", "up"}))
"""Roles that runtimes make one matrix of."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Linears that must have the same scheme.

    Attributes:
        depth: Index of their block.
        roles: What the block uses them for, in its order.
        linears: Their names.
        shapes: `(O, I)` of each.
    """

    depth: int
    roles: tuple[Role, ...]
    linears: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        """Return what it is known by: its first Linear."""
        return self.linears[0]

    @property
    def weights(self) -> int:
        """Count its weights."""
        return sum(map(prod, self.shapes))


def find_sites(blocks: Sequence[Block]) -> tuple[Site, ...]:
    """List the sites of a model, in its order; every Linear is in one of them."""
    return tuple(_site(block, linears) for block in blocks for linears in _together(block))


def _together(block: Block) -> list[list[LinearRole]]:
    """Join the Linears of a block that must be stored alike: those with a reason in common, directly or by others."""
    sharing: dict[str, list[Hashable]] = {}
    for number, group in enumerate(scale_groups(block.sites)):
        for member in (member for site in group for member in site.linears):
            sharing.setdefault(member.name, []).append(("scale", number))
    for site in block.sites:
        for linear in site.linears if site.pool is not None else ():
            sharing[linear.name].append(("experts", str(site.pool).partition(":")[0]))
    linears = list(block.linears)
    first: dict[Hashable, int] = {}
    # The place of one that each is joined with, itself for the first of a site.
    joined = list(range(len(linears)))

    def root(place: int) -> int:
        while joined[place] != place:
            joined[place] = joined[joined[place]]
            place = joined[place]
        return place

    for place, linear in enumerate(linears):
        for reason in [*sharing[linear.name], *_reasons(linear)]:
            others = root(first.setdefault(reason, place))
            joined[max(others, root(place))] = min(others, root(place))
    groups: dict[int, list[LinearRole]] = {}
    for place, linear in enumerate(linears):
        groups.setdefault(root(place), []).append(linear)
    return list(groups.values())


def _reasons(linear: LinearRole) -> Iterator[Hashable]:
    """Yield what a Linear must be stored like, beside what shares its scale."""
    yield "module", linear.module
    yield from (("fused", linear.owner, number) for number, roles in enumerate(FUSED) if linear.role in roles)


def _site(block: Block, linears: Sequence[LinearRole]) -> Site:
    return Site(
        depth=block.index,
        roles=tuple(linear.role for linear in linears),
        linears=tuple(linear.name for linear in linears),
        shapes=tuple(linear.shape for linear in linears),
    )
