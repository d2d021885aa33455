"""Budgets of bits as a dimension: in steps, so that several trials have each of them.

Responsible for how many there are between two ends. May assume that the ends suit the model.
"""

from dataclasses import replace

from hpo.space.dimension import DECIMALS, DIMENSIONS, Dimension

STEPS = (9, 8, 10, 7, 6, 5)
"""From end to end, the first that gives whole steps; a front of about ten sizes is known in about sixty trials."""


def budgets_between(low: float, high: float) -> Dimension:
    """Make the dimension of budgets from `low` to `high`, both bits per weight in thousandths, and `low` below `high`.

    Where no number of steps is even, the lowest budget moves up a little.
    """
    thousandths = round((high - low) * 10**DECIMALS)
    steps = next((steps for steps in STEPS if thousandths % steps == 0), min(STEPS[1], thousandths))
    step = round(thousandths // steps / 10**DECIMALS, DECIMALS)
    return replace(DIMENSIONS["bit_budget"], low=round(high - steps * step, DECIMALS), high=high, step=step)
