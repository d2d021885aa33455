"""The paired difference of a partly measured trial to the incumbent, and what the trial would probably have scored.

Responsible for the paired comparison that prunes trials and for the estimates that pruned ones carry. May assume that
all trials are scored on the same sequences in the same order.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import optimize, special

from hpo.study.estimate import Estimate
from hpo.study.objective import PERPLEXITY, Objective
from objectives.paired import Difference
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
    """The best completed trial that a running one may be compared with: of equal bits, or of no larger a budget.

    Attributes:
        number: Of the trial.
        score: Its values on all text.
        prior: How differences of a trial to the control scatter; None where too few are known.
        objective: What they are differences of.
        control: What looks are subtracted from, of which all text is known as well: the objective's measure is an
            average of the incumbent's and others'. None is the incumbent itself.
    """

    number: int
    score: Score
    prior: VariancePrior | None = None
    objective: Objective = PERPLEXITY
    control: Score | None = None


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


def make_incumbent(number: int, score: Score, others: Sequence[Score], objective: Objective = PERPLEXITY) -> Incumbent:
    """Make the incumbent that trials are compared with, from everything like it that was measured to the end.

    Half of the scatter of a paired difference is the incumbent's own: on some text it happened to round well. The mean
    over several settings has less of it. So a look is subtracted from such a mean, and what the mean differs from the
    incumbent by, which is known on all text, is added: a regression estimate whose slope is preassigned (Cochran,
    Sampling Techniques, 3rd ed., section 7.2). It is as unbiased whatever the weights are, since no look of the trial
    has a part in them. They are inverse to the variance of a difference to the incumbent, which itself counts as the
    nearest of the others does.

    Args:
        number: Of the incumbent.
        score: Its values on all text.
        others: Scores on all text, of settings that are like those that will be compared.
        objective: What is compared.
    """
    differences = [(other, objective.difference(other, score)) for other in others]
    # Equal weights under another setting say nothing that the incumbent does not.
    unlike = [(other, 1 / gap.standard_error**2) for other, gap in differences if 0 < gap.standard_error < math.inf]
    if not unlike:
        return Incumbent(number=number, score=score, objective=objective)
    members = [(score, max(weight for _, weight in unlike)), *unlike]
    gaps = [
        objective.difference(other, _average([*members[:place], *members[place + 1 :]], objective))
        for place, (other, _) in enumerate(members)
        if place > 0
    ]
    return Incumbent(
        number=number,
        score=score,
        prior=fit_variance_prior(gaps, float(score.tokens.sum())),
        objective=objective,
        control=_average(members, objective),
    )


def _average(members: Sequence[tuple[Score, float]], objective: Objective) -> Score:
    """Return the first score with its measure averaged over all, by their weights."""
    values = torch.stack([score.of(objective.measure) for score, _ in members])
    weights = torch.tensor([weight for _, weight in members], dtype=values.dtype)
    return replace(members[0][0], **{objective.measure: (weights / weights.sum()) @ values})


def fit_variance_prior(differences: Iterable[Difference], tokens: float) -> VariancePrior | None:
    """Fit the prior of a paired difference's variance to settings that were measured to the end.

    The variances are taken for draws from a scaled inverse chi-square distribution, whose mean and width are fitted by
    moments of their logarithms (Smyth 2004, Statistical Applications in Genetics and Molecular Biology 3, section 6.2).

    Args:
        differences: On all text; those of which no error is known, or which have none, are left out.
        tokens: Of all text.
    """
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

    The look is subtracted from the control, whose difference to the incumbent is known on all text (`make_incumbent`).
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
    control, measure = incumbent.control or full, incumbent.objective.measure
    difference = incumbent.objective.difference(look, control.first(count))
    variance, degrees = difference.standard_error**2, difference.degrees
    if incumbent.prior is not None:
        prior = incumbent.prior
        own = variance * degrees if degrees > 0 else 0.0
        variance = (prior.degrees * prior.variance / float(look.tokens.sum()) + own) / (prior.degrees + degrees)
        degrees += prior.degrees
    read = float(look.tokens.sum() / full.tokens.sum())
    error = math.sqrt(variance * max(0.0, 1 - read)) if math.isfinite(variance) else math.inf
    value = difference.value + control.mean(measure) - full.mean(measure)
    return ModeratedPairedDifference(value=value, standard_error=error, degrees=max(1.0, degrees))


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
