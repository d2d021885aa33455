"""What refining changed on text that had no part in it.

Responsible for the paired differences of two scores of the same text. May assume that both measured divergence.
"""

import math

from objectives.paired import paired_difference
from objectives.refinement_record import Change, Gain
from objectives.scoring import Measure, Score


def gain(source: str, part: str, before: Score, after: Score) -> Gain:
    """Compare scores of one text before and after refining.

    Raises:
        ValueError: If they are of different texts, or of a model without full precision.
    """
    return Gain(
        source=source,
        part=part,
        sequences=len(after.nll),
        tokens=int(after.tokens.sum()),
        kl=_change(before, after, "kl"),
        nll=_change(before, after, "nll"),
        flips=_change(before, after, "flips"),
    )


def _change(before: Score, after: Score, measure: Measure) -> Change:
    difference = paired_difference(after, before, measure=measure)
    bounded = math.isfinite(difference.low)
    return Change(
        before=before.mean(measure),
        after=after.mean(measure),
        difference=difference.value,
        low=difference.low if bounded else None,
        high=difference.high if bounded else None,
    )
