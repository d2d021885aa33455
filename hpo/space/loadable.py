"""What of a search space a runtime loads.

Responsible for asking the deployment of every combination that formats can tell apart, so that what can be loaded
stands with the formats alone. May assume a valid space; without a model only what holds for every model is judged.
"""

import itertools
from collections.abc import Mapping
from dataclasses import replace

from hpo.space.dimension import Value
from hpo.space.space import Space
from objectives.errors import InputError
from objectives.export.deployment import Deployment
from objectives.trial import Bench
from quant.plan import Plan
from quant.setting import Setting

FIELDS = ("group_size", "symmetric", "full_range", "keep_ratio")
"""What of the searched fields decides how weights are stored."""


def loadable(space: Space, deployment: Deployment, bench: Bench | None = None) -> tuple[Space, list[str]]:
    """Return the part of a space that a runtime loads, and a notice of everything that it lost.

    Raises:
        InputError: If it loads none of the space, with the first reason.
    """
    names = [name for name in FIELDS if name in space.reads]
    combinations = [
        dict(zip(names, values, strict=True)) for values in itertools.product(*(space.values(name) for name in names))
    ]
    refusals = [_refusal(space.base, values, deployment, bench) for values in combinations]
    if None not in refusals:
        raise InputError(f"--for {deployment.runtime}: {refusals[0]}")
    notices = []
    for name in names:
        loaded = {values[name] for values, refusal in zip(combinations, refusals, strict=True) if refusal is None}
        reasons = [
            refusal
            for values, refusal in zip(combinations, refusals, strict=True)
            if refusal is not None and values[name] not in loaded
        ]
        # What to do instead stands after the reason.
        reason = reasons[0].partition(";")[0] if reasons else ""
        space, notice = space.limited(name, loaded, reason)
        notices += [notice] if notice else []
    return space, notices


def _refusal(base: Setting, values: Mapping[str, Value], deployment: Deployment, bench: Bench | None) -> str | None:
    """Say why a runtime does not load a setting; None where it does."""
    try:
        deployment.require_loads(Plan.uniform(replace(base, **values)), bench)  # type: ignore[arg-type]
    except InputError as error:
        return str(error)
    return None
