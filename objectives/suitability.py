"""Tell whether a plan suits the Linears of a model.

Responsible for refusing, before anything is computed, what cannot be quantized as planned, and for dividing the Linears
of an input among their settings. May assume settings that were validated when they were made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import gcd

from objectives.errors import InputError
from objectives.model.roles import Block, FusedExperts, InputSite, scale_groups
from quant.plan import Plan
from quant.setting import Setting

LISTED = 3
LARGEST_GROUP, MOST_DIVISORS = 256, 4


def require_suitable(blocks: Sequence[Block], plan: Plan, allow_partial_groups: bool = False) -> None:
    """Refuse a plan that does not suit the Linears of a model.

    Raises:
        InputError: If it names Linears that the model does not have, gives none to some, gives several to Linears
            that share a scale, or if a group size that a method reads does not divide the inputs of a Linear.
    """
    _require_all_named(blocks, plan)
    for group in (group for block in blocks for group in scale_groups(block.sites)):
        _require_agreement(group, plan)
    if not allow_partial_groups:
        for setting in plan.settings:
            _require_whole_groups(blocks, plan, setting)


def require_experts(name: str, blocks: Sequence[Block]) -> None:
    """Refuse to send every token through every expert of a model that has none.

    Raises:
        InputError: If no block has experts, or they are modules of their own.
    """
    experts = [held for block in blocks for held in block.experts]
    if not experts:
        raise InputError(f"--route-all is for mixtures of experts, and {name} has no experts; leave it out")
    if not all(isinstance(held, FusedExperts) for held in experts):
        raise InputError(
            f"--route-all is for experts that one module computes, and those of {name} are modules of their own, which "
            "read what they are sent; leave it out"
        )


def _require_all_named(blocks: Sequence[Block], plan: Plan) -> None:
    names = {linear.name: linear for block in blocks for linear in block.linears}
    unknown = [name for name in plan.named if name not in names]
    if unknown:
        raise InputError(
            f"the plan has settings for {_listed(unknown)}, which the decoder blocks of this model do not have; leave "
            "them out (head and embeddings stay in 16 bit)"
        )
    left_out = [name for name in names if plan.others is None and name not in plan.named]
    if left_out:
        raise InputError(f"the plan has no setting for {_listed(left_out)}; name them, or give one for all others")


def _require_agreement(group: Sequence[InputSite], plan: Plan) -> None:
    """Linears whose input takes one scale together are searched together, so one setting has to do for them all."""
    linears = [linear.name for site in group for linear in site.linears]
    settings = {plan.setting_for(linear) for linear in linears}
    shared = group[0].folds and any(
        setting.definition.salience is not None and setting.scales == "foldable" for setting in settings
    )
    if shared and len(settings) > 1:
        raise InputError(
            f"{_listed(linears)} share one foldable input scale and have "
            f"{len(settings)} settings; give them the same one, or use --scales linear"
        )


def _require_whole_groups(blocks: Sequence[Block], plan: Plan, setting: Setting) -> None:
    size = setting.group_size
    linears = (linear for block in blocks for linear in block.linears)
    widths = sorted({linear.shape[1] for linear in linears if plan.setting_for(linear.name) == setting})
    if setting.is_unquantized or setting.definition.per_row or all(width % size == 0 for width in widths):
        return
    raise InputError(
        f"group size {size} does not divide the input widths {', '.join(map(str, widths))} of this model; "
        f"use {group_sizes_text(blocks)}, or --allow-partial-groups"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def suitable_group_sizes(blocks: Sequence[Block]) -> list[int]:
    """Return which of 32, 64, 128 and 256 divide the inputs of every quantized Linear."""
    return [size for size in (32, 64, 128, 256) if divides(blocks, size)]


def divides(blocks: Sequence[Block], size: int) -> bool:
    """Return whether a group size divides the inputs of every quantized Linear."""
    return all(site.inputs % size == 0 for block in blocks for site in block.sites)


def group_sizes_text(blocks: Sequence[Block]) -> str:
    """Name the group sizes that divide the inputs of every quantized Linear: usual ones, else the largest there are."""
    common = gcd(*(site.inputs for block in blocks for site in block.sites))
    divisors = [size for size in range(common, 0, -1) if common % size == 0 and size <= LARGEST_GROUP]
    return ", ".join(map(str, suitable_group_sizes(blocks) or divisors[:MOST_DIVISORS]))


def parts_by_setting(sites: Sequence[InputSite], plan: Plan) -> list[tuple[tuple[InputSite, ...], Setting]]:
    """Return the Linears of sites by their setting; a suitable plan has one setting where they share a scale."""
    settings = dict.fromkeys(plan.setting_for(linear.name) for site in sites for linear in site.linears)
    return [(tuple(_parts_with(setting, sites, plan)), setting) for setting in settings]


def _parts_with(setting: Setting, sites: Sequence[InputSite], plan: Plan) -> Iterator[InputSite]:
    for site in sites:
        linears = tuple(linear for linear in site.linears if plan.setting_for(linear.name) == setting)
        if linears:
            yield replace(site, linears=linears)
