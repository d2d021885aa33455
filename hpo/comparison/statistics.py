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
        """Whether the two differ, after correction for all pairs."""
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
    """Every row against every later one, data set by data set."""
    found = [
        (dataset, first.name, second.name, paired_difference(first.scores[at], second.scores[at]))
        for at, dataset in enumerate(datasets)
        for first, second in combinations(entries, 2)
    ]
    corrected = holm([difference.p_value for *_, difference in found])
    return tuple(
        Pair(dataset=dataset, first=first, second=second, difference=difference, corrected=p_value)
        for (dataset, first, second, difference), p_value in zip(found, corrected, strict=True)
    )


def ranks(ordered: Sequence[str], differ: Callable[[str, str], bool]) -> dict[str, int]:
    """Ranks in which ties are ties.

    Walked best first: the first row leads rank 1. A row that does not differ from the leader of the current rank
    shares it; one that does leads the next rank, which is its place (1, 1, 3). What is asked is always the difference
    to the leader, because "does not differ" is not transitive: rows of one rank are all like its best row, and rows of
    neighbouring ranks may still be like each other.

    Args:
        ordered: Names, best first.
        differ: Whether two of them differ significantly.
    """
    found: dict[str, int] = {}
    leader = ""
    for place, name in enumerate(ordered, 1):
        if not leader or differ(leader, name):
            leader, rank = name, place
        found[name] = rank
    return found


def ranked(entries: Sequence[Entry], at: int, dataset: str, pairs: Sequence[Pair]) -> dict[str, int]:
    """The ranks of entries on the `at`-th data set, in which pairs differ that are significant after Holm."""
    apart = {frozenset((pair.first, pair.second)) for pair in pairs if pair.dataset == dataset and pair.is_significant}
    ordered = sorted(entries, key=lambda entry: entry.scores[at].mean_nll)
    return ranks([entry.name for entry in ordered], lambda first, second: frozenset((first, second)) in apart)


def gaps(entries: Sequence[Entry], datasets: Sequence[str]) -> Iterator[Gap]:
    """Of every row but full precision, on every data set but the first."""
    full, *others = entries
    for entry in others:
        near, *far = (paired_difference(score, known) for score, known in zip(entry.scores, full.scores, strict=True))
        for dataset, one in zip(datasets[1:], far, strict=True):
            reach = _reach(near, one)
            value = one.value - near.value
            yield Gap(
                name=entry.name,
                dataset=dataset,
                near=near,
                far=one,
                value=value,
                low=value - reach,
                high=value + reach,
            )


def _reach(first: Difference, second: Difference) -> float:
    """Half the interval of the difference of two independent means (Welch 1947, Biometrika 34)."""
    error = math.hypot(first.standard_error, second.standard_error)
    if not 0 < error < math.inf:
        return error
    parts = sum((one.standard_error / error) ** 4 / (one.clusters - 1) for one in (first, second))
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, 1 / parts)) * error
