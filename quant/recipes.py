"""Names of recipes: a method and the ingredients that are added to it, as `gw-awq+range+gptq`.

Responsible for the way from such a name to the fields of a setting and back. Adding an ingredient is a row of
`INGREDIENTS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quant.errors import QuantizationError
from quant.parameters import PARAMETERS, flag_of

JOINT = "+"


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """Says which field of a setting takes which value; in a named method it has its default."""

    field: str
    value: str | bool


INGREDIENTS = {
    "full": Ingredient(field="full_range", value=True),
    "range": Ingredient(field="range_search", value="diagonal"),
    "block": Ingredient(field="range_search", value="block"),
    "alpha": Ingredient(field="alpha_proxy", value="range"),
    "gptq": Ingredient(field="rounding", value="gptq"),
}


def recipe_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a setting whose method may be the name of a recipe.

    Args:
        values: Fields of a setting.

    Raises:
        QuantizationError: If an ingredient is unknown, or says something else than another one or than a field.
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
    return fields


def recipe_name(setting: Any) -> str:
    """Name the method of a `Setting` with the ingredients that it reads: the inverse of `recipe_fields`."""
    added = [
        name
        for name, ingredient in INGREDIENTS.items()
        if ingredient.field in setting.reads
        and getattr(setting, ingredient.field) == ingredient.value != PARAMETERS[ingredient.field].default
    ]
    return JOINT.join([setting.method, *added])
