"""Settings from flags: all that `evaluate` measures, the one that `quantize` writes.

Responsible for which settings, plans and budgets are meant. May assume that settings check their own values.
"""

from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hpo.commands.flags import PARAMETER_FLAGS, given_parameters
from hpo.study.options import BenchOptions
from objectives.errors import InputError
from quant.parameters import flag_of

if TYPE_CHECKING:
    from objectives.budget import Budget
    from quant.plan import Plan
    from quant.setting import Setting

OWN_GROUP_SIZES = "under a budget every Linear has a group size of its own; leave --group-size out"
OF_THE_TEXT = "n_calib"
"""What a command reads where the method does not: how much text there is to calibrate, to allocate and to refine on."""


def evaluated_settings(parsed: Namespace, model: str) -> list["Setting"]:
    """The settings of the methods that were named, and of the presets where these are wanted.

    Raises:
        InputError: If parameters were given and no method, or one that no setting reads.
        QuantizationError: If a value is outside its range.
    """
    from quant.recipes import recipe_fields
    from quant.setting import PRESETS, Setting

    named, values = parsed.method, given_parameters(parsed, PARAMETER_FLAGS)
    nothing_named = named is None and parsed.plan is None
    presets = parsed.presets or (model == BenchOptions.model and nothing_named)
    chosen = [Setting(**recipe_fields({**values, "method": name})) for name in (named or "").split(",") if name]
    if presets:
        changed = [Setting(**{**preset.as_dict(), **values}) for preset in PRESETS.values()]
        chosen = [*chosen, Setting(**{**values, "method": "rtn"}), *changed]
    elif values and not chosen:
        raise InputError(f"{', '.join(values)} given without --method; add --method gwh-praq-v2, for example")
    require_read(chosen, values, parsed.budget is not None)
    return chosen


def one_plan(parsed: Namespace) -> "Plan | None":
    """The plan that flags or a file describe; None where it is a study's trial.

    Raises:
        InputError: If more than one of them is given, or none, the file is no plan, or the method does not read a
            parameter.
        QuantizationError: If a value is outside its range.
    """
    from objectives.plan_files import read_plan
    from quant.plan import Plan
    from quant.recipes import recipe_fields
    from quant.setting import Setting

    values = given_parameters(parsed)
    of_study = parsed.study is not None or parsed.trial is not None
    if of_study and values:
        raise InputError("a trial has its own setting; give either --study and --trial, or --method and its parameters")
    if parsed.plan is not None:
        if of_study or values:
            beside = ", ".join(["--study"] if of_study else map(flag_of, values))
            raise InputError(f"a plan has settings of its own, and {beside} is given beside it; leave one of them out")
        return read_plan(parsed.plan)
    if not of_study and not values.get("method"):
        raise InputError("nothing says how to quantize; give --method NAME, --plan FILE or --study NAME")
    if of_study:
        return None
    setting = Setting(**recipe_fields(values))
    require_read([setting], values, parsed.budget is not None)
    return Plan.uniform(setting)


def require_read(settings: Sequence["Setting"], given: Iterable[str], allocated: bool = False) -> None:
    """Refuse parameters that were given and that none of the settings reads.

    Raises:
        InputError: Naming them, or where bits are to be allocated, the group size.
    """
    from quant.setting import unread_numbers

    if allocated and "group_size" in given:
        raise InputError(OWN_GROUP_SIZES)
    problems = unread_numbers(settings, [name for name in given if name != OF_THE_TEXT])
    if problems:
        raise InputError("; ".join(problems))


def given_plans(parsed: Namespace, settings: Sequence["Setting"]) -> list["Plan"]:
    """The plans to measure: each of these settings for all Linears, and that of a file.

    Raises:
        InputError: If the file is no plan.
    """
    from objectives.plan_files import read_plan
    from quant.plan import Plan

    return [*map(Plan.uniform, settings), *([] if parsed.plan is None else [read_plan(parsed.plan)])]


def given_budget(parsed: Namespace) -> "Budget | None":
    """The budget under which the bits of settings are allocated; None where they are as they say.

    Raises:
        InputError: If it cannot be read, or there is a plan beside it.
    """
    from objectives.budget import parse_budget

    if parsed.budget is None:
        return None
    if parsed.plan is not None:
        raise InputError("a plan has bits already; give either --plan, or --budget with the --method to allocate")
    return parse_budget(parsed.budget)
