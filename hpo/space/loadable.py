"""What of a search space a runtime loads, and loads at the size that is counted.

Responsible for asking the deployment of every combination that formats can tell apart, so that what can be loaded
stands with the formats alone. May assume a valid space; without a model only what holds for every model is judged.
"""

import itertools
from dataclasses import replace

from hpo.space.space import Space
from objectives.budget import possible_plans
from objectives.errors import InputError
from objectives.export.deployment import Deployment
from objectives.trial import Bench
from quant.plan import Plan
from quant.setting import Setting

FIELDS = ("group_size", "symmetric", "full_range", "keep_ratio")
"""What of the searched fields decides how weights are stored."""


def loadable(
    space: Space, deployment: Deployment, bench: Bench | None = None, allocated: bool = False
) -> tuple[Space, list[str]]:
    """Return the part of a space that a runtime loads, and a notice of everything that it lost.

    Args:
        space: What is to be searched.
        deployment: Where it is to run.
        bench: Model and roles; None where the model is not loaded, so that the space alone is judged.
        allocated: Whether bits are to be allocated, of which every plan has to be loaded; needs the bench.

    Raises:
        InputError: If it loads none of the space, with the first reason.
    """
    # Under a budget every site has a group size of its own.
    names = [name for name in FIELDS if name in space.reads and not (allocated and name == "group_size")]
    combinations = [
        dict(zip(names, values, strict=True)) for values in itertools.product(*(space.values(name) for name in names))
    ]
    settings = [replace(space.base, **values) for values in combinations]  # type: ignore[arg-type]
    refusals = [_refusal(setting, deployment, bench, allocated) for setting in settings]
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
    space, notice = _of_one_size(space, deployment)
    return space, [*notices, notice] if notice else notices


def _of_one_size(space: Space, deployment: Deployment) -> tuple[Space, str | None]:
    """Leave out symmetric codes where they take the bits of asymmetric ones; whoever gave them alone has them."""
    limits = deployment.form.limits
    if limits is None or not limits.always_zero_points or set(space.values("symmetric")) != {True, False}:
        return space, None
    reason = f"{limits.name} stores a zero point for every group, so that they are as large as asymmetric codes"
    return space.limited("symmetric", {False}, reason)


def _refusal(setting: Setting, deployment: Deployment, bench: Bench | None, allocated: bool) -> str | None:
    """Say why a runtime does not load a setting, or some plan that it may be the recipe of; None where it does."""
    plans = possible_plans(setting, bench.blocks) if allocated and bench is not None else [Plan.uniform(setting)]
    try:
        for plan in plans:
            deployment.require_loads(plan, bench)
    except InputError as error:
        return str(error)
    return None
