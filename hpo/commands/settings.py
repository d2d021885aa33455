"""Settings from flags: all that `evaluate` measures, the one that `quantize` writes.

Responsible for which settings are meant. May assume that settings check their own values.
"""

from argparse import Namespace
from typing import TYPE_CHECKING

from hpo.commands.flags import PARAMETER_FLAGS, given_parameters
from hpo.study.options import BenchOptions
from objectives.errors import InputError

if TYPE_CHECKING:
    from quant.setting import Setting


def evaluated_settings(parsed: Namespace, model: str) -> list["Setting"]:
    """The settings of the methods that were named, and of the presets where these are wanted.

    Raises:
        InputError: If parameters were given and no method.
        QuantizationError: If a value is outside its range.
    """
    from quant.recipes import recipe_fields
    from quant.setting import PRESETS, Setting

    named, values = parsed.method, given_parameters(parsed, PARAMETER_FLAGS)
    presets = parsed.presets or (model == BenchOptions.model and named is None)
    chosen = [Setting(**recipe_fields({**values, "method": name})) for name in (named or "").split(",") if name]
    if not presets:
        if values and not chosen:
            raise InputError(f"{', '.join(values)} given without --method; add --method gwh-praq-v2, for example")
        return chosen
    changed = [Setting(**{**preset.as_dict(), **values}) for preset in PRESETS.values()]
    return [*chosen, Setting(**{**values, "method": "rtn"}), *changed]


def one_setting(parsed: Namespace) -> "Setting | None":
    """The setting that flags describe; None where it is a study's trial.

    Raises:
        InputError: If flags and a trial are given, or neither.
        QuantizationError: If a value is outside its range.
    """
    from quant.recipes import recipe_fields
    from quant.setting import Setting

    values = given_parameters(parsed)
    of_study = parsed.study is not None or parsed.trial is not None
    if of_study and values:
        raise InputError("a trial has its own setting; give either --study and --trial, or --method and its parameters")
    if not of_study and not values.get("method"):
        raise InputError("nothing says how to quantize; give --method NAME, or --study NAME")
    return None if of_study else Setting(**recipe_fields(values))
