"""The words around the figures of plans: what they store, what they lose, whether that was foreseen, how a front grew.

Responsible for saying each in one sentence or two. May assume that the study is one of plans.
"""

from hpo.report.additivity import agreement
from hpo.report.caption import Caption, caption
from hpo.report.plan_data import PlanData


def plan_captions(plans: PlanData) -> list[Caption]:
    """Write one for every figure that a report of plans can have, in its order."""
    writers = (_stored, _contributed, _additivity, *((_volume,) if plans.volume else ()))
    return [write(plans) for write in writers]


def _stored(plans: PlanData) -> Caption:
    name, bits = plans.name, plans.bits
    reading = (
        f"Bits per weight, scales included, in which {name} stores every Linear: more where the model is hurt more."
    )
    alt = f"from {min(bits.numbers):.3f} to {max(bits.numbers):.3f} bits." if bits and bits.numbers else ""
    why_not = None if bits and bits.numbers else f"the kept result of {name} is damaged or missing"
    return caption("stored", "Where the plan puts its bits", reading, alt, why_not)


def _contributed(plans: PlanData) -> Caption:
    name, damages = plans.name, plans.damages
    reading = (
        f"Divergence from full precision, in nats per token, that each site of {name} is predicted to add in the bits "
        "that it got; Linears of one site show the same number, which is that of the site."
    )
    alt = f"up to {max(damages.numbers):.2g} nats per token at one site." if damages and damages.numbers else ""
    why_not = None if damages and max(damages.numbers, default=0.0) > 0 else "what sites lose is not known"
    return caption("contributed", "What each site of the plan loses", reading, alt, why_not)


def _additivity(plans: PlanData) -> Caption:
    predictions = plans.predictions
    alike = [plan for plan in predictions if plan.alike]
    others = len(predictions) - len(alike)
    left_out = f" {others} squares round otherwise than the recipe that sites were measured by, and do not count."
    reading = (
        "Divergence from full precision of every plan that was measured to the end: predicted from its sites, each "
        "measured alone on calibration text, and measured on the tuning text with its 95 % interval; on the dashed "
        "line both are equal, and text that is easier or harder moves all points alike. "
        f"{agreement(alike)} Plans of a study are the best of their bits, so ranks agree already where more bits "
        f"diverge less.{left_out if others else ''}"
    )
    alt = "; ".join(plan.text for plan in predictions[:6])
    why_not = None if predictions else "no plan has a divergence that was predicted and measured"
    return caption("additivity", "Whether predicted damages add up", reading, f"{alt}.", why_not)


def _volume(plans: PlanData) -> Caption:
    reading = (
        "The area between the front and the worst trial, over all budgets: where the line is flat, trials found "
        "nothing that is smaller or better than what was known."
    )
    return caption(
        "volume", "How the front grew", reading, f"{plans.volume[-1][1]:.4g} nats times bits at the end.", None
    )
