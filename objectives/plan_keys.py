"""What determines the weights that a plan gives, beside the model and its kind of device.

Responsible for keys that are made of nothing else, so that what is kept under them cannot be stale.
"""

from collections.abc import Sequence

from objectives.calibration import shrinking
from objectives.calibration.calibration import Calibration
from objectives.model.loading import Model
from objectives.model.roles import Block
from quant.plan import Plan
from quant.setting import Setting


def plan_parts(
    model: Model, blocks: Sequence[Block], calibration: Calibration, plan: Plan, allow_partial_groups: bool
) -> list[object]:
    """Return what a plan does to a model, as values that JSON takes.

    Raises:
        InputError: If there is not enough calibration text for the plan.
    """
    parts: list[object] = [_said(plan), allow_partial_groups, str(model.stored_dtype)]
    parts += [calibration.first(size).key for size in plan.calibration_sizes]
    parts += [shrinking.FORMULA, shrinking.KAPPA_PER_INPUT] if any(block.experts for block in blocks) else []
    return parts


def _said(plan: Plan) -> object:
    """Say what a plan does, without what its methods do not read; a uniform plan does what its setting does."""
    if plan.only is not None:
        return _fields(plan.only)
    named = {linear: _fields(setting) for linear, setting in plan.named.items()}
    return {"named": named, "others": plan.others and _fields(plan.others)}


def _fields(setting: Setting) -> dict[str, object]:
    """Return the canonical fields; the usual bits go unsaid, so that results from before there were others count."""
    canonical = setting.canonical()
    unsaid = {"bits", "bit_budget"} - canonical.reads
    return {name: value for name, value in canonical.as_dict().items() if name not in unsaid}
