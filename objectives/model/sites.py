"""Sites: which Linears of a model must be stored alike.

Responsible for these as data, from the roles of the blocks. Linears of a common input share the scale that folds into
what produces it, slices share the codes of their module, and runtimes such as vLLM make one matrix of query, key and
value, and of gate and up, and have one kernel for all experts of a block. May assume blocks that `finding` made.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from objectives.model.layouts import Role
from objectives.model.roles import Block, LinearRole, scale_groups

FUSED: tuple[frozenset[Role], ...] = (frozenset({"q", "k", "v"}), frozenset({"gate", "up"}))
"""Roles that runtimes make one matrix of."""
EXPERT = re.compile(r"(.*\.experts)\.\d+")
"""Owners that are experts, by what holds them."""


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
    """Join the Linears of a block that must be stored alike."""
    groups: list[list[LinearRole]] = []
    for linear in block.linears:
        joined = [group for group in groups if any(_alike(block, linear, other) for other in group)]
        for group in joined[1:]:
            joined[0].extend(group)
            groups.remove(group)
        if joined:
            joined[0].append(linear)
        else:
            groups.append([linear])
    return groups


def _alike(block: Block, linear: LinearRole, other: LinearRole) -> bool:
    sharing = ({member.name for site in group for member in site.linears} for group in scale_groups(block.sites))
    if linear.module is other.module or any({linear.name, other.name} <= names for names in sharing):
        return True
    if linear.owner == other.owner:
        return any({linear.role, other.role} <= roles for roles in FUSED)
    experts = [EXPERT.fullmatch(member.owner) for member in (linear, other)]
    return all(experts) and len({match[1] for match in experts if match}) == 1


def _site(block: Block, linears: Sequence[LinearRole]) -> Site:
    return Site(
        depth=block.index,
        roles=tuple(linear.role for linear in linears),
        linears=tuple(linear.name for linear in linears),
        shapes=tuple(linear.shape for linear in linears),
    )
