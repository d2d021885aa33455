"""Plans as files and tables that people write: JSON with the Linears of each setting, CSV with a row for each Linear.

Responsible for the way from these to a `Plan` and back, and for saying in one line what is wrong with one. Whether a
plan suits a model is for `suitability` to say. May assume that settings check their own values.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from objectives.errors import InputError
from objectives.model.roles import LinearRole
from quant.errors import QuantizationError
from quant.parameters import PARAMETERS, Parameter, value_text
from quant.plan import Plan
from quant.recipes import recipe_fields
from quant.setting import Setting
from storage.errors import StoredValueError
from storage.typed_json import decode, decode_known, encode

LINEAR, METHOD = "linear", "method"
DESCRIBING = ("block", "role")
"""Columns of a table that say what a Linear is; nothing is read from them."""
TRUTHS = {"true": True, "false": False}


@dataclass(frozen=True, kw_only=True)
class LinearsSetting:
    """One setting of a plan, with what it reads and the Linears that it is for."""

    method: str
    parameters: Mapping[str, object]
    linears: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """What a plan is as JSON; a `praqtune.json` of a mixed plan has these fields, too."""

    settings: tuple[LinearsSetting, ...]


def linears_settings(plan: Plan, linears: Sequence[str]) -> tuple[LinearsSetting, ...]:
    """List the settings of a plan with the Linears of each, among these."""
    by_setting: dict[Setting, list[str]] = {setting: [] for setting in plan.settings}
    for name in linears:
        by_setting[plan.setting_for(name)].append(name)
    return tuple(
        LinearsSetting(
            method=setting.method, parameters={"bits": setting.bits, **parameters(setting)}, linears=tuple(names)
        )
        for setting, names in by_setting.items()
        if names
    )


def parameters(setting: Setting) -> dict[str, object]:
    """Return what a setting reads beside its method."""
    return {name: value for name, value in setting.read_values().items() if name != METHOD}


def plan_json(plan: Plan, linears: Sequence[str]) -> str:
    """Write a plan as JSON that `read_plan` reads."""
    return json.dumps(encode(PlanFile(settings=linears_settings(plan, linears))), indent=1) + "\n"


def plan_rows(plan: Plan, linears: Iterable[tuple[int, LinearRole]]) -> list[dict[str, object]]:
    """List a plan as rows, one for each Linear: its block, its role, and what its setting reads.

    Args:
        plan: Has a setting for each of them.
        linears: Indices of blocks, with their Linears.
    """
    settings = [(depth, linear, plan.setting_for(linear.name)) for depth, linear in linears]
    read = frozenset().union(*(setting.reads for _, _, setting in settings)) | {METHOD, "bits"}
    columns = [name for name in PARAMETERS if name in read]
    return [
        {
            LINEAR: linear.name,
            **dict(zip(DESCRIBING, (depth, linear.role), strict=True)),
            **{name: getattr(setting, name) if name in setting.reads | {METHOD, "bits"} else None for name in columns},
        }
        for depth, linear, setting in settings
    ]


def read_plan(path: Path) -> Plan:
    """Read the plan of a file, CSV where it is called so and JSON elsewhere.

    Raises:
        InputError: If it cannot be read, or is no plan; in one line that names the place.
    """
    where = f"plan file {path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where} cannot be read: {error}") from None
    if path.suffix.lower() == ".csv":
        return plan_of_rows(_csv_rows(text, where), where)
    return _plan_of_json(text, where)


def plan_of_rows(rows: Iterable[Mapping[str, object]], where: str = "the plan") -> Plan:
    """Make the plan of a table with a row for each Linear; what is empty has its default.

    Args:
        rows: `linear`, and parameters by name, as values or as text; `method` may be a recipe's name.
        where: What the table is called in errors.

    Raises:
        InputError: If a row cannot be a setting, or a Linear has several.
    """
    return _plan((_row(row, f"{where}, row {number}") for number, row in enumerate(rows, 1)), where)


def _plan(settings: Iterable[tuple[str, Setting]], where: str) -> Plan:
    named: dict[str, Setting] = {}
    for linear, setting in settings:
        if linear in named:
            raise InputError(f"{where} has more than one setting for {linear}; leave one")
        named[linear] = setting
    if not named:
        raise InputError(f"{where} has no settings; it needs one for each Linear of the model")
    return Plan(named=named)


def _plan_of_json(text: str, where: str) -> Plan:
    try:
        stored = json.loads(text)
        if not isinstance(stored, dict):
            raise InputError(f'{where} is no plan: write {{"settings": [{{"method", "parameters", "linears"}}, ...]}}')
        file = decode_known(PlanFile, stored, where)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); a table needs a name that ends in .csv") from None
    except StoredValueError as error:
        raise InputError(str(error)) from None
    named = (
        (linear, setting)
        for number, group in enumerate(file.settings)
        for setting in [_setting({**group.parameters, METHOD: group.method}, f"{where}: settings[{number}]")]
        for linear in group.linears
    )
    return _plan(named, where)


def _csv_rows(text: str, where: str) -> Iterator[Mapping[str, object]]:
    try:
        reader = csv.DictReader(text.splitlines(), strict=True, restkey="")
        for row in reader:
            if "" in row:
                raise InputError(f"{where}, line {reader.line_num} has more values than there are columns")
            yield row
    except csv.Error as error:
        raise InputError(f"{where} is not CSV ({error})") from None


def _row(row: Mapping[str, object], where: str) -> tuple[str, Setting]:
    values = {name: value for name, value in row.items() if name not in DESCRIBING and not _is_empty(value)}
    linear = values.pop(LINEAR, None)
    if not isinstance(linear, str):
        raise InputError(f"{where} names no Linear; the column {LINEAR!r} has to")
    unknown = [name for name in values if name not in PARAMETERS]
    if unknown:
        raise InputError(f"{where} has the unknown column {unknown[0]!r}; there are {', '.join(PARAMETERS)}")
    return linear, _setting({name: _typed(PARAMETERS[name], value) for name, value in values.items()}, where)


def _setting(fields: Mapping[str, object], where: str) -> Setting:
    try:
        return decode(Setting, recipe_fields(fields), where)
    except QuantizationError as error:
        raise InputError(f"{where}: {error}") from None
    except StoredValueError as error:
        raise InputError(str(error)) from None


def _is_empty(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _typed(parameter: Parameter, value: object) -> object:
    """Turn text, and the numbers of tables in which some are missing, into the parameter's type where that can be."""
    text = value_text(value.item() if hasattr(value, "item") else value).strip()
    if parameter.type is bool:
        return TRUTHS.get(text.lower(), value)
    if parameter.type is str:
        return text
    try:
        number = float(text)
    except ValueError:
        return value
    return int(number) if parameter.type is int and number.is_integer() else number
