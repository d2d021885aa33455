"""What the scores of a comparison say: differences of all pairs, ranks, generalisation gaps.

Responsible for the numbers alone. P-values are corrected by Holm for all pairs on all data sets together. May assume
entries whose first is full precision, and data sets that share no document.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from scipy import stats

from hpo.comparison.entries import Entry
from hpo.verdict.ranking import SIGNIFICANT
from objectives.paired import Difference, holm, paired_difference

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Mean NLL of one row minus another's on one data set; negative is in the first one's favour."""

    dataset: str
    first: str
    second: str
    difference: Difference
    corrected: float

    @property
    def is_significant(self) -> bool:
        """Tell whether the two differ, after correction for all pairs."""
        return self.corrected < SIGNIFICANT


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How much more a row loses on other text than on the first data set.

    Attributes:
        name: The row.
        dataset: The other text.
        near: Mean NLL above full precision's on the first data set.
        far: The same on the other text.
        value: `far - near`, nats per token; above 0 it generalises worse than its first data set shows.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    name: str
    dataset: str
    near: Difference
    far: Difference
    value: float
    low: float
    high: float


def all_pairs(entries: Sequence[Entry], datasets: Sequence[str]) -> tuple[Pair, ...]:
    """Compare every row with every later one, data set by data set."""
    differences = [
        (dataset, first.name, second.name, paired_difference(first.scores[at], second.scores[at]))
        for at, dataset in enumerate(datasets)
        for first, second in combinations(entries, 2)
    ]
    corrected = holm([difference.p_value for *_, difference in differences])
    return tuple(
        Pair(dataset=dataset, first=first, second=second, difference=difference, corrected=p_value)
        for (dataset, first, second, difference), p_value in zip(differences, corrected, strict=True)
    )


def ranks(ordered: Sequence[str], differ: Callable[[str, str], bool]) -> dict[str, int]:
    """Rank rows so that ties are ties.

    Walked best first: the first row leads rank 1. A row that does not differ from the leader of the current rank
    shares it; one that does leads the next rank, which is its place (1, 1, 3). What is asked is always the difference
    to the leader, because "does not differ" is not transitive: rows of one rank are all like its best row, and rows of
    neighbouring ranks may still be like each other.

    Args:
        ordered: Names, best first.
        differ: Whether two of them differ significantly.
    """
    by_name: dict[str, int] = {}
    leader = ""
    for place, name in enumerate(ordered, 1):
        if not leader or differ(leader, name):
            leader, rank = name, place
        by_name[name] = rank
    return by_name


def ranked(entries: Sequence[Entry], at: int, dataset: str, pairs: Sequence[Pair]) -> dict[str, int]:
    """Rank entries on the `at`-th data set, where pairs differ that are significant after Holm's correction."""
    apart = {frozenset((pair.first, pair.second)) for pair in pairs if pair.dataset == dataset and pair.is_significant}
    ordered = sorted(entries, key=lambda entry: entry.scores[at].mean_nll)
    return ranks([entry.name for entry in ordered], lambda first, second: frozenset((first, second)) in apart)


def gaps(entries: Sequence[Entry], datasets: Sequence[str]) -> Iterator[Gap]:
    """Yield the gaps of every row but full precision, on every data set but the first."""
    full, *others = entries
    for entry in others:
        near, *far = (
            paired_difference(score, full_score) for score, full_score in zip(entry.scores, full.scores, strict=True)
        )
        for dataset, difference in zip(datasets[1:], far, strict=True):
            half_width = _half_width(near, difference)
            value = difference.value - near.value
            yield Gap(
                name=entry.name,
                dataset=dataset,
                near=near,
                far=difference,
                value=value,
                low=value - half_width,
                high=value + half_width,
            )


def _half_width(first: Difference, second: Difference) -> float:
    """Compute half the width of the interval of a difference of two independent means (Welch 1947, Biometrika 34)."""
    error = math.hypot(first.standard_error, second.standard_error)
    if not 0 < error < math.inf:
        return error
    parts = sum((difference.standard_error / error) ** 4 / (difference.clusters - 1) for difference in (first, second))
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, 1 / parts)) * error
