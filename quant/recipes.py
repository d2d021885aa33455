"""Names of recipes: a method and the ingredients that are added to it, as `gw-awq+range+gptq`.

Responsible for the way from such a name to the fields of a setting and back, and for the settings on the way from
nearest rounding to a recipe. Adding an ingredient is a row of `INGREDIENTS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from quant.errors import QuantizationError
from quant.parameters import PARAMETERS, flag_of

JOINT = "+"


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """Says which field of a setting takes which value; in a named method it has its default.

    `needs` are the ingredients of which it takes one: without them it would do nothing. Nor would it on a grid with
    zero points where it is `symmetric_only`.
    """

    field: str
    value: str | bool
    needs: tuple[str, ...] = ()
    symmetric_only: bool = False


INGREDIENTS = {
    "full": Ingredient(field="full_range", value=True, symmetric_only=True),
    "range": Ingredient(field="range_search", value="diagonal"),
    "block": Ingredient(field="range_search", value="block"),
    "alpha": Ingredient(field="alpha_proxy", value="range", needs=("range", "block")),
    "gptq": Ingredient(field="rounding", value="gptq"),
    "prefix": Ingredient(field="prefix", value="quantized", needs=("gptq",)),
}


def recipe_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a setting whose method may be the name of a recipe.

    Args:
        values: Fields of a setting.

    Raises:
        QuantizationError: If an ingredient is unknown, does nothing without another or on the grid, or says something
            else than another one or than a field.
    """
    if "method" not in values:
        return dict(values)
    method, *names = str(values["method"]).split(JOINT)
    fields = {**values, "method": method}
    unknown = [name for name in names if name not in INGREDIENTS]
    if unknown:
        raise QuantizationError(
            f"ingredient {', '.join(map(repr, unknown))} of {values['method']} is unknown; choose some of "
            f"{', '.join(INGREDIENTS)}"
        )
    for name in names:
        ingredient = INGREDIENTS[name]
        if fields.get(ingredient.field, ingredient.value) != ingredient.value:
            raise QuantizationError(
                f"{values['method']} means {flag_of(ingredient.field)} {ingredient.value}, and "
                f"{fields[ingredient.field]} is asked for, too; leave one of them out"
            )
        fields[ingredient.field] = ingredient.value
    for name in names:
        needs = INGREDIENTS[name].needs
        if needs and not any(fields.get(INGREDIENTS[need].field) == INGREDIENTS[need].value for need in needs):
            raise QuantizationError(
                f"{name} of {values['method']} does nothing without {' or '.join(needs)}; add {JOINT}{needs[0]}, or "
                "leave it out"
            )
        if INGREDIENTS[name].symmetric_only and fields.get("symmetric") is False:
            raise QuantizationError(
                f"{name} of {values['method']} does nothing on codes with zero points (--asymmetric), which use their "
                "full range as it is; leave it out, or give --symmetric"
            )
    return fields


def recipe_name(setting: Any) -> str:
    """Name the method of a `Setting` with the ingredients that it reads: the inverse of `recipe_fields`."""
    return JOINT.join([setting.method, *_added(setting)])


def recipe_steps(setting: Any) -> list[tuple[str, Any]]:
    """List the settings from nearest rounding to a `Setting`, each with one more of what that has.

    Returns:
        Names and settings: `rtn`, the method with everything that it reads, then its ingredients in the order of
        `INGREDIENTS`, each added to those before it: `+range`, `+gptq`. The last one is the setting.
    """
    nearest = "rtn-channel" if setting.definition.per_row else "rtn"
    step = replace(setting, **{ingredient.field: _default(ingredient) for ingredient in INGREDIENTS.values()})
    steps = [(nearest, replace(step, method=nearest))]
    if setting.method != nearest:
        steps.append((setting.method, step))
    for name in _added(setting):
        step = replace(step, **{INGREDIENTS[name].field: INGREDIENTS[name].value})
        steps.append((f"{JOINT}{name}", step))
    return steps


def _added(setting: Any) -> list[str]:
    """List the ingredients that a setting reads, in their order."""
    return [
        name
        for name, ingredient in INGREDIENTS.items()
        if ingredient.field in setting.reads
        and getattr(setting, ingredient.field) == ingredient.value != _default(ingredient)
    ]


def _default(ingredient: Ingredient) -> object:
    return PARAMETERS[ingredient.field].default
