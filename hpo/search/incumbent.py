"""The paired difference of a partly measured trial to the incumbent, and what the trial would probably have scored.

Responsible for the paired comparison that prunes trials and for the estimates that pruned ones carry. May assume that
all trials are scored on the same sequences in the same order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from hpo.study.estimate import Estimate
from hpo.study.objective import PERPLEXITY, Objective
from objectives.scoring import Score

# Comparisons that it takes to know how they scatter, and the most that this may be worth: settings that were compared
# so far need not be like the next one.
FEWEST_COMPARED, MOST_DEGREES = 3, 50.0


@dataclass(frozen=True, kw_only=True)
class VariancePrior:
    """What is known of the variance of a paired difference before it is measured, from others that were compared.

    It is that of a scaled inverse chi-square distribution.

    Attributes:
        variance: Of a difference, times the tokens it was taken over; squared nats.
        degrees: Of freedom that this knowledge is worth.
    """

    variance: float
    degrees: float


@dataclass(frozen=True, kw_only=True)
class Incumbent:
    """The best completed trial that a running one may be compared with: the same size class, hence equal bits.

    `prior` is how differences to it scatter; None where too few are known. `objective` is what they are differences of.
    """

    number: int
    score: Score
    prior: VariancePrior | None = None
    objective: Objective = PERPLEXITY


@dataclass(frozen=True, kw_only=True)
class ModeratedPairedDifference:
    """A partly measured trial minus the incumbent on the same sequences, in nats per token of the objective's measure.

    Attributes:
        value: Mean difference; negative when the trial is ahead.
        standard_error: Of `value` as an estimate of the difference on all sequences.
        degrees: Of freedom of that error.
    """

    value: float
    standard_error: float
    degrees: float


def fit_variance_prior(
    others: Sequence[Score], incumbent: Score, objective: Objective = PERPLEXITY
) -> VariancePrior | None:
    """Fit the prior of a paired difference's variance to settings that were measured to the end.

    The variances are taken for draws from a scaled inverse chi-square distribution, whose mean and width are fitted by
    moments of their logarithms (Smyth 2004, Statistical Applications in Genetics and Molecular Biology 3, section 6.2).

    Args:
        others: Scores on all text.
        incumbent: The score that they are compared with.
        objective: What is compared.
    """
    tokens = float(incumbent.tokens.sum())
    differences = [objective.difference(other, incumbent) for other in others]
    usable = [difference for difference in differences if 0 < difference.standard_error < math.inf]
    if len(usable) < FEWEST_COMPARED:
        return None
    half = usable[0].degrees / 2
    logs = np.array([math.log(tokens * difference.standard_error**2) for difference in usable])
    logs += math.log(half) - float(special.digamma(half))
    excess = float(logs.var(ddof=1) - special.polygamma(1, half))
    least = float(special.polygamma(1, MOST_DEGREES / 2))
    degrees = MOST_DEGREES if excess <= least else 2 * _inverse_trigamma(excess)
    middle = float(logs.mean() + special.digamma(degrees / 2) - math.log(degrees / 2))
    return VariancePrior(variance=math.exp(middle), degrees=degrees)


def _inverse_trigamma(value: float) -> float:
    """Find where the second derivative of log gamma, which falls, has this value."""
    return float(optimize.brentq(lambda x: float(special.polygamma(1, x)) - value, 1e-3, 1e6))


def moderated_paired_difference(look: Score, incumbent: Incumbent) -> ModeratedPairedDifference:
    """Compare the sequences that both have, with a moderated standard error.

    Few documents tell their own variance badly, so it is averaged with the prior one, each by its degrees of freedom
    (moderated t, Smyth 2004, section 4).

    The sequences are a sample without replacement of a finite set, the tuning text, and it is the difference on that
    set that decides which trial is best: its error shrinks to zero as the set is read (finite-population correction,
    Cochran, Sampling Techniques, 3rd ed., section 2.6). Nowhere else is that correction right.

    Args:
        look: The trial's first sequences.
        incumbent: Whom it is compared with.
    """
    count, full = len(look.nll), incumbent.score
    difference = incumbent.objective.difference(look, full.first(count))
    variance, degrees = difference.standard_error**2, difference.degrees
    if incumbent.prior is not None:
        prior = incumbent.prior
        own = variance * degrees if degrees > 0 else 0.0
        variance = (prior.degrees * prior.variance / float(look.tokens.sum()) + own) / (prior.degrees + degrees)
        degrees += prior.degrees
    read = float(look.tokens.sum() / full.tokens.sum())
    error = math.sqrt(variance * max(0.0, 1 - read)) if math.isfinite(variance) else math.inf
    return ModeratedPairedDifference(value=difference.value, standard_error=error, degrees=max(1.0, degrees))


def estimate(look: Score, incumbent: Incumbent) -> Estimate:
    """Estimate what a pruned trial would score on all text: as the incumbent, moved by the paired difference.

    Far more exact than the trial's own running mean, because text that is hard for one setting is hard for all.
    """
    difference = moderated_paired_difference(look, incumbent)
    measure = incumbent.objective.measure
    mean = incumbent.score.mean(measure) + difference.value
    return Estimate(
        mean_nll=mean if measure == "nll" else None,
        mean_kl=mean if measure == "kl" else None,
        standard_error=difference.standard_error if math.isfinite(difference.standard_error) else None,
        degrees=difference.degrees,
        against=incumbent.number,
    )
