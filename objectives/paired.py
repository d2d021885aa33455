"""Paired statistics: is one score really lower than another on the same text?

Responsible for differences of token-weighted mean NLL, their standard errors and intervals, and for correcting
several comparisons; scores of different texts are refused. May assume that sequences of equal lengths from the same
documents are the same sequences. The variance is the ratio estimator's, by the jackknife over clusters of sequences
that share a document (Cochran, Sampling Techniques, 3rd ed., section 6.17, without finite-population correction): a few
long documents make it larger, as they should.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from objectives.scoring import Measure, Score


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of a measure of one score minus another's, per target: nats, or a share of targets that flip.

    Attributes:
        value: The difference; negative when the first is better.
        standard_error: Of `value`; 0 when all clusters differ alike.
        low: Lower end of the interval.
        high: Upper end of the interval.
        p_value: Two-sided, of no difference.
        clusters: Independent pieces of text compared.
        degrees: Of freedom: one less than the number of clusters of equal length that would say as much (Kish, Survey
            Sampling, 1965, section 11.7), at least 1; 0 where nothing is known of the error.
    """

    value: float
    standard_error: float
    low: float
    high: float
    p_value: float
    clusters: int
    degrees: float = 0.0

    def percent(self) -> tuple[float, float, float]:
        """Return the difference and its interval as percent of perplexity: `100 (exp(d) - 1)`."""
        value, low, high = (100 * math.expm1(nats) for nats in (self.value, self.low, self.high))
        return value, low, high


def paired_difference(first: Score, second: Score, confidence: float = 0.95, measure: Measure = "nll") -> Difference:
    """Compare two scores of the same sequences by one of their measures.

    Args:
        first: The one whose advantage is asked for.
        second: What it is compared with.
        confidence: Of the interval, by Student's t.
        measure: What is compared, per target.

    Returns:
        The difference; nothing is known of its error where there is one cluster or a score is not finite.

    Raises:
        ValueError: If the scores are of different texts: other numbers of targets, or other documents; or if one of
            them lacks the measure.
    """
    members = _members(first)
    if not (np.array_equal(first.tokens.numpy(), second.tokens.numpy()) and np.array_equal(members, _members(second))):
        raise ValueError(
            f"paired scores must be of the same sequences; the first is of {_described(first)}, the second of "
            f"{_described(second)}, of other lengths or from other documents"
        )
    return _estimated(first.of(measure) - second.of(measure), first, members, confidence)


def distance(score: Score, measure: Measure, confidence: float = 0.95) -> Difference | None:
    """Return how far a score is from full precision's by `kl` or `flips`, which are 0 there; None if not measured."""
    if score.kl is None:
        return None
    return _estimated(score.of(measure), score, _members(score), confidence)


def _estimated(sums: Tensor, score: Score, members: NDArray[np.int64], confidence: float) -> Difference:
    """Estimate a mean per target, of `sums` `[sequences]`, with its error."""
    gains = np.bincount(members, sums.numpy())
    tokens = np.bincount(members, score.tokens.numpy())
    count, total = len(gains), tokens.sum()
    value = float(gains.sum() / total)
    if count < 2 or not math.isfinite(value):
        return Difference(
            value=value, standard_error=math.inf, low=-math.inf, high=math.inf, p_value=1.0, clusters=count
        )
    shares = tokens / total
    # What the difference moves by when a cluster is left out.
    moves = (gains - value * tokens) / (total - tokens)
    error = math.sqrt((count - 1) / count * float((moves**2).sum()))
    degrees = max(1.0, float(1 / (shares**2).sum()) - 1)
    reach = float(stats.t.ppf((1 + confidence) / 2, degrees)) * error
    p_value = float(2 * stats.t.sf(abs(value) / error, degrees)) if error > 0 else float(value == 0)
    return Difference(
        value=value,
        standard_error=error,
        low=value - reach,
        high=value + reach,
        p_value=p_value,
        clusters=count,
        degrees=degrees,
    )


def _members(score: Score) -> NDArray[np.int64]:
    """Number the cluster of each sequence from 0 in the order of the documents' numbers: int64 `[sequences]`."""
    _, members = np.unique(score.clusters.numpy(), return_inverse=True)
    return members


def _described(score: Score) -> str:
    return f"{len(score.nll)} sequences and {int(score.tokens.sum())} tokens"


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979, Scandinavian Journal of Statistics 6), in the given order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
