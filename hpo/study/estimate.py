"""What a pruned trial would probably have scored, and how sure that is.

Responsible for turning a mean and its standard error into a value of the study's objective and its interval. May assume
nothing of how the estimate was made.
"""

import math
from dataclasses import dataclass

from hpo.study.objective import KL, MOST_NATS, PERPLEXITY, Objective

CONFIDENCE, NORMAL_95 = 0.95, 1.96
# Of an error of which nothing is known, squared nats.
VAGUE = 1.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a pruned trial would probably have scored on all text, by the text it did read.

    Attributes:
        mean_nll: Nats per token on all tuning text; None in studies of divergence.
        mean_kl: Divergence from full precision likewise; None in studies of perplexity. One of the two is given.
        standard_error: Of that mean; None where nothing is known of it.
        degrees: Of freedom of that error.
        against: Number of the trial that it was compared with.
    """

    mean_nll: float | None = None
    mean_kl: float | None = None
    standard_error: float | None
    degrees: float
    against: int

    def __post_init__(self) -> None:
        if (self.mean_nll is None) == (self.mean_kl is None):
            raise ValueError("an estimate has either a mean NLL or a mean divergence")

    @property
    def objective(self) -> Objective:
        """Return what it is an estimate of."""
        return PERPLEXITY if self.mean_kl is None else KL

    @property
    def value(self) -> float:
        """Return the estimated value of the objective."""
        return self.objective.from_nats(self._mean)

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval of the value; no perplexity and no divergence is negative."""
        return max(0.0, self.objective.from_nats(min(self._mean - self._half_width, MOST_NATS)))

    @property
    def high(self) -> float:
        """Upper end of that interval."""
        return self.objective.from_nats(min(self._mean + self._half_width, MOST_NATS))

    @property
    def variance(self) -> float:
        """Of a normal error of the mean with the same 95 % interval, squared nats.

        Student's t of few degrees of freedom is wider than the normal distribution that models take errors for.
        """
        return VAGUE if self.standard_error is None else (self._half_width / NORMAL_95) ** 2

    @property
    def _mean(self) -> float:
        mean = self.mean_nll if self.mean_kl is None else self.mean_kl
        assert mean is not None
        return mean

    @property
    def _half_width(self) -> float:
        """Half the 95 % interval of the mean, by Student's t."""
        # Imported here: `status` has no use for it, and scipy takes its time.
        from scipy.special import stdtrit

        if self.standard_error is None:
            return math.inf
        return float(stdtrit(self.degrees, (1 + CONFIDENCE) / 2)) * self.standard_error
