"""What a format can hold, as data, and the refusal of what it cannot.

Responsible for one line with the reason and the remedy, before anything is computed. May assume validated plans; what
depends on the model is checked once its Linears are known.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import gcd

import torch

from objectives.errors import InputError
from objectives.model.roles import Block, LinearRole
from objectives.model.sites import find_sites
from quant.plan import Plan
from quant.scheme import Scheme
from quant.setting import Setting

DENSE = "write it with --format dense"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the weights of a format can be.

    Attributes:
        name: Of the format, for errors.
        bits: Of a code.
        groups: Group sizes that its runtimes have kernels for; None for any.
        per_row: Whether it has one scale per row.
        zero_points: Whether codes may count from zero, with a zero point per group.
        always_zero_points: Whether it stores one for every group, of symmetric codes too, which are then no smaller.
        several_schemes: Whether Linears may have different schemes.
        multiple: What inputs and outputs of a Linear have to be multiples of.
        experts: Whether it has matrices of experts one by one, of one scheme with all Linears.
        splits: Whether runtimes split its Linears over several devices.
    """

    name: str
    bits: tuple[int, ...] = (4,)
    groups: tuple[int, ...] | None = None
    per_row: bool = True
    zero_points: bool = True
    always_zero_points: bool = False
    several_schemes: bool = False
    multiple: int = 1
    experts: bool = False
    splits: bool = False


def require_plan(limits: Limits, plan: Plan) -> None:
    """Refuse a plan that the format cannot hold, whatever the model is.

    Raises:
        InputError: With the reason and what to do instead.
    """
    for setting in plan.settings:
        if not setting.is_unquantized:
            _require_setting(limits, setting)
    schemes = {scheme for setting in plan.settings if (scheme := scheme_of(setting)) is not None}
    if not schemes:
        raise InputError(f"nothing is quantized, so there is nothing to pack; give fewer bits, or {DENSE}")
    if len(schemes) > 1 and not limits.several_schemes:
        raise InputError(
            f"{limits.name} has one scheme for all Linears, and there are {len(schemes)} here; give all Linears the "
            "same, or use --format compressed-tensors"
        )


def unfit_for_budgets(limits: Limits | None, given: str, instead: str) -> list[str]:
    """Say why bits cannot be allocated for a format, and what to do; nothing where they can.

    Args:
        limits: Of the format; None where it holds anything.
        given: The flag that chose it.
        instead: The flag that chooses one that holds several schemes.
    """
    if limits is None or limits.several_schemes:
        return []
    several = f"{given} has one scheme for all Linears, and plans under a budget have several"
    return [f"{several}; give {instead}, or leave the budget out"]


def require_linears(limits: Limits, plan: Plan, blocks: Sequence[Block]) -> None:
    """Refuse Linears that the format cannot hold by this plan.

    Raises:
        InputError: With the reason and what to do instead.
    """
    for site in find_sites(blocks):
        count = len({scheme_of(plan.setting_for(name)) for name in site.linears})
        if count > 1:
            raise InputError(
                f"runtimes of {limits.name} make one matrix of {', '.join(site.linears)}, which has {count} "
                f"schemes here; give its parts the same one, or {DENSE}"
            )
    linears = quantized_linears(blocks, plan)
    for setting in plan.settings:
        scheme = scheme_of(setting)
        size = None if scheme is None else scheme.group_size
        widths = {linear.shape[1] for linear in linears if plan.setting_for(linear.name) == setting}
        partial = sorted(width for width in widths if size and width % size)
        if partial:
            raise InputError(
                f"{limits.name} cannot hold the partial last group that a group size of {size} leaves of "
                f"{', '.join(map(str, partial))} inputs; {_dividing(limits, widths)}, or {DENSE}"
            )
    if not limits.experts and any(site.pool is not None for block in blocks for site in block.sites):
        raise InputError(
            f"{limits.name} is not written for mixtures of experts; use --format compressed-tensors, or {DENSE}"
        )
    for linear in linears:
        outputs, inputs = linear.parameter.shape[-2:]
        if inputs % limits.multiple or outputs % limits.multiple:
            raise InputError(
                f"{limits.name} packs {limits.multiple} codes into a word, and {linear.name} has {outputs} outputs and "
                f"{inputs} inputs; use --format compressed-tensors"
            )


def _require_setting(limits: Limits, setting: Setting) -> None:
    if setting.bits not in limits.bits:
        raise InputError(
            f"{limits.name} has weights of {_either(limits.bits)} bits, not of {setting.bits}; give "
            f"--bits {_either(limits.bits)}, or {DENSE}"
        )
    if not setting.symmetric and not limits.zero_points:
        raise InputError(f"{limits.name} has no kernel for zero points; use --symmetric, or another format or runtime")
    if setting.definition.keeps_rows:
        raise InputError(f"{setting.method} keeps rows in 16 bit, which {limits.name} cannot hold; {DENSE}")
    if setting.scales_at_run_time:
        raise InputError(
            f"--scales linear divides the inputs of every Linear where the model runs, which {limits.name} cannot "
            f"hold; {DENSE}, or use --scales foldable"
        )
    scheme = scheme_of(setting)
    size = None if scheme is None else scheme.group_size
    if size is None and not limits.per_row:
        allowed = f"choose a method with groups and --group-size {_either(limits.groups)}"
        raise InputError(f"{setting.method} has one scale per row, which {limits.name} has no kernel for; {allowed}")
    if size is not None and limits.groups is not None and size not in limits.groups:
        raise InputError(f"{limits.name} has no kernel for groups of {size}; use --group-size {_either(limits.groups)}")


def _dividing(limits: Limits, widths: Collection[int]) -> str:
    """Say which groups divide all these inputs: those that a format has, else those of the format that has any."""
    sizes = [size for size in limits.groups or () if all(width % size == 0 for width in widths)]
    if sizes:
        return f"use --group-size {_either(sizes)}"
    elsewhere = "use --format compressed-tensors with" if limits.groups else "use"
    return f"{elsewhere} a --group-size that divides {gcd(*widths)}"


def _either(numbers: Collection[int] | None) -> str:
    return " or ".join(map(str, numbers or ()))


def scheme_of(setting: Setting) -> Scheme | None:
    """Return the scheme of a setting, None where it leaves weights alone; the type of scales is the whole model's."""
    return None if setting.is_unquantized else setting.scheme(torch.float16)


def only_scheme(plan: Plan) -> Scheme:
    """Return the scheme of a plan that has one."""
    return next(scheme for setting in plan.settings if (scheme := scheme_of(setting)) is not None)


def quantized_linears(blocks: Sequence[Block], plan: Plan) -> list[LinearRole]:
    """Return the Linears, or their slices, that a plan does not leave in 16 bit."""
    linears = (linear for block in blocks for linear in block.linears)
    return [linear for linear in linears if not plan.setting_for(linear.name).is_unquantized]


def quantized_modules(blocks: Sequence[Block], plan: Plan) -> Mapping[str, list[LinearRole]]:
    """Return the modules that are quantized by name, each with its Linear or the slices that it consists of."""
    modules: dict[str, list[LinearRole]] = {}
    for linear in quantized_linears(blocks, plan):
        modules.setdefault(linear.name.partition(":")[0], []).append(linear)
    return modules


def modules_in_16_bit(blocks: Sequence[Block], plan: Plan) -> list[str]:
    """Return the modules of the decoder blocks that have matrices and are not quantized."""
    uncovered = {name.removesuffix(".weight") for block in blocks for name in block.uncovered}
    named = {linear.name.partition(":")[0] for block in blocks for linear in block.linears}
    return sorted(uncovered | (named - set(quantized_modules(blocks, plan))))
