"""How far a partly measured trial is behind the incumbent, and what it would probably have scored.

Responsible for the paired comparison that prunes trials and for the estimates that pruned ones carry. May assume that
all trials are scored on the same sequences in the same order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from hpo.study.estimate import Estimate
from objectives.paired import paired_difference
from objectives.scoring import Score

# Comparisons that it takes to know how they scatter, and the most that this may be worth: settings that were compared
# so far need not be like the next one.
FEWEST_COMPARED, MOST_DEGREES = 3, 50.0


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How differences between two settings scatter from token to token, as others that were compared showed it.

    Attributes:
        variance: Of a difference of mean NLL, times the tokens it was taken over; squared nats.
        degrees: Of freedom that this knowledge is worth.
    """

    variance: float
    degrees: float


@dataclass(frozen=True, kw_only=True)
class Incumbent:
    """The best completed trial that a running one may be compared with: the same size class, hence equal bits.

    `usual` is how far others scatter around it; None where too few are known.
    """

    number: int
    score: Score
    usual: Spread | None = None


@dataclass(frozen=True, kw_only=True)
class Lag:
    """How far a partly measured trial is behind the incumbent on the same sequences, in nats per token.

    Attributes:
        value: Mean difference; negative when the trial is ahead.
        standard_error: Of `value` as an estimate of the difference on all sequences.
        degrees: Of freedom of that error.
    """

    value: float
    standard_error: float
    degrees: float


def usual_spread(others: Sequence[Score], incumbent: Score) -> Spread | None:
    """What others that were measured to the end say of the scatter that a trial's difference will have.

    The variances are taken for draws from a scaled inverse chi-square distribution, whose mean and width are fitted by
    moments of their logarithms (Smyth 2004, Statistical Applications in Genetics and Molecular Biology 3, section 6.2).

    Args:
        others: Scores on all text.
        incumbent: The score that they are compared with.
    """
    tokens = float(incumbent.tokens.sum())
    found = [paired_difference(other, incumbent) for other in others]
    known = [one for one in found if 0 < one.standard_error < math.inf]
    if len(known) < FEWEST_COMPARED:
        return None
    half = known[0].degrees / 2
    logs = np.array([math.log(tokens * one.standard_error**2) for one in known])
    logs += math.log(half) - float(special.digamma(half))
    excess = float(logs.var(ddof=1) - special.polygamma(1, half))
    least = float(special.polygamma(1, MOST_DEGREES / 2))
    degrees = MOST_DEGREES if excess <= least else 2 * _inverse_trigamma(excess)
    middle = float(logs.mean() + special.digamma(degrees / 2) - math.log(degrees / 2))
    return Spread(variance=math.exp(middle), degrees=degrees)


def _inverse_trigamma(value: float) -> float:
    """Where the second derivative of log gamma, which falls, has this value."""
    return float(optimize.brentq(lambda x: float(special.polygamma(1, x)) - value, 1e-3, 1e6))


def lag(look: Score, incumbent: Incumbent) -> Lag:
    """Compare the sequences that both have.

    Few documents tell their own scatter badly, so it is averaged with the usual one, each by its degrees of freedom
    (moderated t, Smyth 2004, section 4).

    The sequences are a sample without replacement of a finite set, the tuning text, and it is the difference on that
    set that decides which trial is best: its error shrinks to zero as the set is read (finite-population correction,
    Cochran, Sampling Techniques, 3rd ed., section 2.6). Nowhere else is that correction right.

    Args:
        look: The trial's first sequences.
        incumbent: Whom it is compared with.
    """
    count, full = len(look.nll), incumbent.score
    difference = paired_difference(look, full.first(count))
    own, degrees = difference.standard_error**2, difference.degrees
    if incumbent.usual is not None:
        usual = incumbent.usual
        seen = own * degrees if degrees > 0 else 0.0
        own = (usual.degrees * usual.variance / float(look.tokens.sum()) + seen) / (usual.degrees + degrees)
        degrees += usual.degrees
    read = float(look.tokens.sum() / full.tokens.sum())
    error = math.sqrt(own * max(0.0, 1 - read)) if math.isfinite(own) else math.inf
    return Lag(value=difference.value, standard_error=error, degrees=max(1.0, degrees))


def estimate(look: Score, incumbent: Incumbent) -> Estimate:
    """What a pruned trial would score on all text: as the incumbent, moved by the lag.

    Far more exact than the trial's own running mean, because text that is hard for one setting is hard for all.
    """
    behind = lag(look, incumbent)
    return Estimate(
        mean_nll=incumbent.score.mean_nll + behind.value,
        standard_error=behind.standard_error if math.isfinite(behind.standard_error) else None,
        degrees=behind.degrees,
        against=incumbent.number,
    )
