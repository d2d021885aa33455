"""What a pruned trial would probably have scored, and how sure that is.

Responsible for turning a mean NLL and its standard error into a perplexity and its interval. May assume nothing of how
the estimate was made.
"""

import math
from dataclasses import dataclass

CONFIDENCE, NORMAL_95 = 0.95, 1.96
# Of an error of which nothing is known, squared nats; and the mean NLL above which a perplexity is not a number.
VAGUE, MOST_NATS = 1.0, 700.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a pruned trial would probably have scored on all text, by the text it did read.

    Attributes:
        mean_nll: Nats per token on all tuning text.
        standard_error: Of `mean_nll`; None where nothing is known of it.
        degrees: Of freedom of that error.
        against: Number of the trial that it was compared with.
    """

    mean_nll: float
    standard_error: float | None
    degrees: float
    against: int

    @property
    def perplexity(self) -> float:
        """`exp(mean_nll)`; infinite where that overflows."""
        return math.exp(self.mean_nll) if self.mean_nll < MOST_NATS else math.inf

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval of the perplexity."""
        return math.exp(min(self.mean_nll - self._half_width, MOST_NATS))

    @property
    def high(self) -> float:
        """Upper end of that interval."""
        return math.exp(min(self.mean_nll + self._half_width, MOST_NATS))

    @property
    def variance(self) -> float:
        """Of a normal error of `mean_nll` with the same 95 % interval, squared nats.

        Student's t of few degrees of freedom is wider than the normal distribution that models take errors for.
        """
        return VAGUE if self.standard_error is None else (self._half_width / NORMAL_95) ** 2

    @property
    def _half_width(self) -> float:
        """Half the 95 % interval of `mean_nll`, by Student's t."""
        # Imported here: `status` has no use for it, and scipy takes its time.
        from scipy.special import stdtrit

        if self.standard_error is None:
            return math.inf
        return float(stdtrit(self.degrees, (1 + CONFIDENCE) / 2)) * self.standard_error
