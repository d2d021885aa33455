"""Flags from what declares them: option dataclasses, and the table of parameters.

Responsible for the way from a field to a flag and back. A flag that is not given leaves nothing among the parsed
options, so that defaults stand in the dataclasses alone and a study's own values can take their place.
"""

import argparse
from collections.abc import Iterable
from dataclasses import Field, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

from quant.parameters import PARAMETERS, Choices, Parameter, Range, bound_text, flag_of, value_text

Options = TypeVar("Options")

STORAGE_HELP = (
    "where studies are: sqlite:///FILE, postgresql://..., or @FILE that has the URL (default $PRAQTUNE_STORAGE, else a "
    "file in --cache)"
)
METHOD_HELP = (
    "a method (rtn, gw-awq, gwh-praq-v2, ...: docs/methods.md), to which ingredients may be added (+range, +gptq, ...: "
    "docs/recipes.md); gw-awq+range+alpha+gptq is recommended"
)
PARAMETER_FLAGS = tuple(name for name in PARAMETERS if name not in ("method", "bit_budget"))
"""What a setting has beside its method; the budget of a plan is given as `--budget`, in bits or in bytes."""
SPACE_WORDS = "0.3 fixes a hyperparameter; 0.2..0.8 searches a range, 32,64 sizes, nearest,gptq choices"
ORIGINAL = "original"
"""The space without ingredients: input scales, error weights, calibration and group sizes."""


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Add what every command has."""
    words = "directory of calibration, results and default studies (default $PRAQTUNE_HOME, else ~/.cache/praqtune)"
    parser.add_argument("--cache", metavar="DIR", help=words)
    parser.add_argument(
        "--allow-shared-cache", action="store_true", help="accept a cache directory that others can write to"
    )
    parser.add_argument(
        "--json", metavar="FILE", nargs="?", const="-", help="write JSON to FILE; without FILE, print it"
    )
    parser.add_argument("--quiet", action="store_true", help="print neither progress nor warnings")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_options(parser: argparse.ArgumentParser, options: type, *groups: str) -> None:
    """Add a flag for every field of an option dataclass.

    Args:
        parser: Of the command.
        options: The dataclass; its fields are made by `hpo.study.options.option`.
        groups: The headings whose fields are wanted, in the order of the help.
    """
    for heading in groups:
        add_group(parser.add_argument_group(heading), options, heading)


def add_group(group: Any, options: type, heading: str) -> None:
    """Add a flag for every field of an option dataclass that stands under this heading."""
    for field in fields(options):
        if field.metadata["group"] == heading:
            _add_option(group, field)


def given(parsed: argparse.Namespace, options: type) -> dict[str, Any]:
    """The fields of an option dataclass that were given, by name."""
    return {field.name: getattr(parsed, field.name) for field in fields(options) if hasattr(parsed, field.name)}


def options_of(parsed: argparse.Namespace, options: type[Options]) -> Options:
    """An option dataclass with what was given, and its defaults for the rest."""
    return options(**given(parsed, options))


def add_storage_flag(group: Any) -> None:
    """Add the flag that says where studies are."""
    group.add_argument("--storage", metavar="URL", help=STORAGE_HELP)


def add_plan_flags(group: Any) -> None:
    """Add the flags that give Linears settings of their own."""
    group.add_argument(
        "--plan", metavar="FILE", type=Path, help="file with a setting for each Linear: JSON, or CSV if it ends in .csv"
    )
    words = "give each Linear its own bits within this size: 4.25 (bits per weight) or 110MB (the whole model)"
    group.add_argument("--budget", metavar="BITS|SIZE", help=words)


def add_study_flags(parser: argparse.ArgumentParser) -> Any:
    """Add which study is meant, and where it is; returns the group."""
    group = parser.add_argument_group("study")
    group.add_argument(
        "--study", help="name of the study (default: in optimize the model's name, elsewhere the study begun last)"
    )
    add_storage_flag(group)
    return group


def add_report_flag(group: Any) -> None:
    """Add the flag that says where a report goes."""
    group.add_argument("--out", metavar="DIR", type=Path, help="directory of the report (default: reports/STUDY)")


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every parameter of a setting but its method, each with one value."""
    group = parser.add_argument_group("setting")
    for name in PARAMETER_FLAGS:
        parameter = PARAMETERS[name]
        if isinstance(parameter.search, Range):
            text = f"{parameter.help} (default {bound_text(float(parameter.default))})"  # type: ignore[arg-type]
            group.add_argument(parameter.flag, type=parameter.type, default=argparse.SUPPRESS, help=text)
        else:
            _add_fixed(group, parameter)


def add_space_flags(group: Any) -> None:
    """Add a flag for every parameter of a setting: a value, a range or several values of those that are searched."""
    words = (
        f"TOML file with these names and values, or `{ORIGINAL}`: symmetric codes, no range search, nearest rounding"
    )
    group.add_argument("--space", metavar="FILE", help=words)
    method = PARAMETERS["method"]
    searched = f"method whose settings are searched (default {method.default})"
    group.add_argument(method.flag, default=argparse.SUPPRESS, help=searched)
    for name in PARAMETER_FLAGS:
        parameter = PARAMETERS[name]
        if isinstance(parameter.search, Range):
            text = f"{parameter.help} (default {range_text(parameter.search)}{_minus(parameter)})"
            group.add_argument(parameter.flag, default=argparse.SUPPRESS, help=text)
        elif parameter.search is not None:
            _add_choices(group, parameter, parameter.search)
        else:
            _add_fixed(group, parameter)


def given_parameters(parsed: argparse.Namespace, names: Iterable[str] = tuple(PARAMETERS)) -> dict[str, Any]:
    """The parameters among these that were given, by name."""
    return {name: getattr(parsed, name) for name in names if hasattr(parsed, name)}


def range_text(search: Range) -> str:
    """A range as it can be typed: `0.1..5`; powers of two as sizes, `32,64,...,256`."""
    if search.scale == "log2":
        return f"{search.low:g},{2 * search.low:g},...,{search.high:g}"
    return f"{bound_text(search.low)}..{bound_text(search.high)}"


def _add_choices(group: Any, parameter: Parameter, search: Choices) -> None:
    """A flag of a parameter of which a study tries several names, or one of two flags that fix a truth."""
    tried = ", ".join(map(value_text, search.values))
    default = f" (default {tried}; with --space {ORIGINAL} {value_text(parameter.default)})"
    if parameter.opposite is None:
        group.add_argument(parameter.flag, default=argparse.SUPPRESS, help=parameter.help + default)
        return
    opposite, words = parameter.opposite
    exclusive = group.add_mutually_exclusive_group()
    fixed = {"dest": parameter.name, "default": argparse.SUPPRESS}
    exclusive.add_argument(parameter.flag, action="store_true", help=parameter.help + default, **fixed)
    exclusive.add_argument(flag_of(opposite), action="store_false", help=words, **fixed)


def _add_fixed(group: Any, parameter: Parameter) -> None:
    """A flag of a parameter that no study varies: a name, or one of two flags."""
    fixed = {"dest": parameter.name, "default": argparse.SUPPRESS}
    if parameter.opposite is not None:
        opposite, words = parameter.opposite
        exclusive = group.add_mutually_exclusive_group()
        usual, unusual = (" (default)", "") if parameter.default else ("", " (default)")
        exclusive.add_argument(parameter.flag, action="store_true", help=parameter.help + usual, **fixed)
        exclusive.add_argument(flag_of(opposite), action="store_false", help=words + unusual, **fixed)
        return
    listed = f": {' or '.join(map(str, parameter.choices))}" if parameter.choices and ":" not in parameter.help else ""
    words = f"{parameter.help}{listed} (default {parameter.default})"
    group.add_argument(parameter.flag, type=parameter.type, help=words, **fixed)


def _minus(parameter: Parameter) -> str:
    """How to give values that argparse would take for flags."""
    search = parameter.search
    if not isinstance(search, Range) or search.low >= 0:
        return ""
    return f"; write {parameter.flag}={range_text(search)}"


def _add_option(group: Any, field: "Field[Any]") -> None:
    flag, words = flag_of(field.name), field.metadata
    if field.type is bool:
        group.add_argument(flag, dest=field.name, action="store_true", default=argparse.SUPPRESS, help=words["help"])
        return
    usual = "" if field.default is None else f" (default {field.default})"
    group.add_argument(
        flag,
        dest=field.name,
        type=_converter(field.type),
        default=argparse.SUPPRESS,
        metavar=words["metavar"],
        choices=words["choices"],
        help=words["help"] + usual,
    )


def _converter(declared: Any) -> type:
    """What turns a word into a value of the declared type; None is what is not given."""
    if isinstance(declared, UnionType):
        (declared,) = (kind for kind in get_args(declared) if kind is not type(None))
    converter: type = declared
    return converter
