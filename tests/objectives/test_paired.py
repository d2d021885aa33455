"""Paired differences agree with textbook formulas, brute force and simulation."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from objectives.paired import Difference, distance, holm, paired_difference
from objectives.scoring import Score


def made(nll: Sequence[float], tokens: Sequence[int], clusters: Sequence[int] | None = None) -> Score:
    """Every sequence is a document of its own unless `clusters` says otherwise."""
    documents = torch.arange(len(nll)) if clusters is None else torch.tensor(clusters)
    return Score(nll=torch.tensor(nll, dtype=torch.float64), tokens=torch.tensor(tokens), clusters=documents)


def compared(first: Score, second: Score, clusters: Sequence[int]) -> Difference:
    """The difference of two scores whose sequences are of these documents."""
    documents = torch.tensor(clusters)
    return paired_difference(replace(first, clusters=documents), replace(second, clusters=documents))


def random_scores(seed: int, count: int, equal: bool = False) -> tuple[Score, Score]:
    dice = np.random.default_rng(seed)
    tokens = np.full(count, 50) if equal else dice.integers(5, 200, count)
    second = tokens * dice.normal(3.5, 0.4, count)
    return made(second + tokens * dice.normal(0.01, 0.1, count), tokens), made(second, tokens)


NAMES = ("value", "standard_error", "low", "high", "p_value", "clusters")


def fields(difference: Difference) -> list[float]:
    return [getattr(difference, name) for name in NAMES]


def test_equal_token_counts_give_the_paired_t_interval() -> None:
    """With equally many targets everywhere the ratio estimator is the textbook's paired t test."""
    first, second = random_scores(1, 40, equal=True)
    found = paired_difference(first, second)
    per_token = ((first.nll - second.nll) / 50).numpy()
    reference = stats.ttest_rel(first.nll / 50, second.nll / 50)
    interval = reference.confidence_interval(0.95)
    assert found.value == pytest.approx(per_token.mean())
    assert found.standard_error == pytest.approx(stats.sem(per_token))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(reference.pvalue)
    assert found.clusters == 40


def test_the_value_is_the_difference_of_mean_nll() -> None:
    """Every target counts the same, whatever sequence and cluster it is in."""
    first, second = random_scores(2, 30)
    for clusters in (range(30), [index // 3 for index in range(30)], [0] * 30):
        found = compared(first, second, clusters)
        assert found.value == pytest.approx(first.mean_nll - second.mean_nll, rel=1e-9)


def test_unequal_token_counts_give_the_ratio_estimators_error() -> None:
    """The standard error is the jackknife's, every sequence left out in turn; degrees count what lengths are worth."""
    first, second = random_scores(3, 25)
    found = paired_difference(first, second)
    gains, tokens = (first.nll - second.nll).tolist(), first.tokens.tolist()
    ratio = sum(gains) / sum(tokens)
    without = [(sum(gains) - gains[i]) / (sum(tokens) - tokens[i]) for i in range(25)]
    error = math.sqrt(24 / 25 * sum((value - ratio) ** 2 for value in without))
    assert found.standard_error == pytest.approx(error)
    degrees = sum(tokens) ** 2 / sum(count**2 for count in tokens) - 1
    assert found.degrees == pytest.approx(degrees)
    reach = stats.t.ppf(0.975, degrees) * error
    assert (found.low, found.high) == pytest.approx((ratio - reach, ratio + reach))


def test_a_long_document_among_short_ones_counts_for_little_more_than_one() -> None:
    """Eleven documents, one with nine tenths of the text: hardly a degree of freedom, and a wide interval."""
    first, second = random_scores(4, 100, equal=True)
    clusters = [0] * 90 + list(range(1, 11))
    found = compared(first, second, clusters)
    assert found.clusters == 11
    assert found.degrees == 1
    assert found.high - found.low > 20 * found.standard_error


@pytest.mark.parametrize("clustered", [False, True])
def test_the_error_is_the_bootstraps(clustered: bool) -> None:
    """Resampling whole clusters of sequences, tokens and all, spreads as much as the formula says."""
    first, second = random_scores(4, 400)
    clusters = np.arange(400) // (4 if clustered else 1)
    found = compared(first, second, clusters)
    gains = np.bincount(clusters, (first.nll - second.nll).numpy())
    tokens = np.bincount(clusters, first.tokens.numpy())
    drawn = np.random.default_rng(0).integers(0, len(gains), (4000, len(gains)))
    resampled = gains[drawn].sum(1) / tokens[drawn].sum(1)
    assert found.standard_error == pytest.approx(resampled.std(), rel=0.06)
    assert found.clusters == len(gains)


def test_clusters_count_as_one_sequence_each() -> None:
    """Sequences of one document are added up first, in whatever order and under whatever numbers they come."""
    first, second = random_scores(5, 12)
    clusters = [7, 7, 900, 3, 3, 3, 900, 12, 7, 12, 3, 5]
    order = sorted(set(clusters))

    def summed(values: torch.Tensor) -> list[float]:
        return [sum(float(v) for v, c in zip(values, clusters, strict=True) if c == each) for each in order]

    tokens = [int(count) for count in summed(first.tokens)]
    merged = paired_difference(made(summed(first.nll), tokens), made(summed(second.nll), tokens))
    assert fields(compared(first, second, clusters)) == pytest.approx(fields(merged))
    assert merged.clusters == 5


def test_correlated_sequences_widen_the_interval() -> None:
    """When sequences of a document gain alike, counting them as independent would promise too much."""
    gains = np.repeat(np.random.default_rng(6).normal(0, 1, 20), 10)
    first, second = made(100 + gains, [50] * 200), made([100.0] * 200, [50] * 200)
    apart = paired_difference(first, second)
    together = compared(first, second, np.arange(200) // 10)
    assert together.standard_error == pytest.approx(math.sqrt(10) * apart.standard_error, rel=0.1)


def test_one_cluster_says_nothing() -> None:
    """From a single document there is no telling how documents vary."""
    first, second = random_scores(7, 5)
    for scores in ((first, second, [4] * 5), (made([3.0], [2]), made([1.0], [2]), [0])):
        found = compared(*scores)
        assert (found.standard_error, found.low, found.high) == (math.inf, -math.inf, math.inf)
        assert (found.p_value, found.clusters) == (1.0, 1)
        assert math.isfinite(found.value)


def test_a_score_with_itself() -> None:
    """Identical scores differ by exactly nothing, surely and insignificantly."""
    score, _ = random_scores(8, 20)
    assert fields(paired_difference(score, score)) == [0, 0, 0, 0, 1, 20]


def test_a_constant_gain_is_certain() -> None:
    """The same gain per token everywhere has no error and no doubt."""
    _, second = random_scores(9, 20)
    found = paired_difference(made((second.nll + 0.25 * second.tokens).tolist(), second.tokens.tolist()), second)
    assert found.value == pytest.approx(0.25)
    assert found.standard_error == pytest.approx(0, abs=1e-12)
    assert found.p_value < 1e-12


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_never_significant(broken: float) -> None:
    """A model that fell apart on one sequence gets no p-value, and no warning is raised on the way."""
    first, second = random_scores(10, 8)
    first.nll[3] = broken
    found = paired_difference(first, second)
    assert not math.isfinite(found.value)
    assert (found.standard_error, found.low, found.high, found.p_value) == (math.inf, -math.inf, math.inf, 1.0)


@settings(deadline=None, derandomize=True)
@given(
    gains=st.lists(st.floats(-5, 5, allow_subnormal=False), min_size=2, max_size=20),
    tokens=st.lists(st.integers(1, 500), min_size=20, max_size=20),
    clusters=st.lists(st.integers(0, 6), min_size=20, max_size=20),
)
def test_swapping_the_scores_flips_the_sign(gains: list[float], tokens: list[int], clusters: list[int]) -> None:
    """How two scores differ does not depend on which is asked about: only the sign changes."""
    count = len(gains)
    first, second = made([10 + gain for gain in gains], tokens[:count]), made([10.0] * count, tokens[:count])
    difference = compared(first, second, clusters[:count])
    other = compared(second, first, clusters[:count])
    assert (difference.value, difference.low, difference.high) == (-other.value, -other.high, -other.low)
    assert (difference.standard_error, difference.p_value, difference.clusters) == (
        other.standard_error,
        other.p_value,
        other.clusters,
    )
    assert difference.low <= difference.value <= difference.high
    assert 0 <= difference.p_value <= 1


@settings(deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), confidence=st.floats(0.5, 0.999))
def test_the_interval_excludes_zero_exactly_when_p_is_small(seed: int, confidence: float) -> None:
    """Interval and p-value never contradict each other, and more confidence takes a wider interval."""
    first, second = random_scores(seed, 12)
    found = paired_difference(first, second, confidence)
    assert (found.low > 0 or found.high < 0) == (found.p_value < 1 - confidence)
    wider = paired_difference(first, second, (1 + confidence) / 2)
    assert wider.low < found.low <= found.high < wider.high
    assert wider.p_value == found.p_value


@pytest.mark.parametrize("clustered", [False, True])
def test_intervals_cover_the_truth_as_often_as_they_say(clustered: bool) -> None:
    """Of 95 % intervals from small samples with unequal, correlated sequences, 92 to 98 % hold the true difference."""
    dice = np.random.default_rng(11)
    truth, rounds, documents, each = 0.02, 1500, 24, 3 if clustered else 1
    hits = 0
    for _ in range(rounds):
        tokens = dice.integers(20, 120, documents * each)
        shared = np.repeat(dice.normal(0, 0.1, documents), each)
        gains = tokens * (truth + shared + dice.normal(0, 0.05, documents * each))
        base = made([0.0] * len(tokens), tokens)
        found = compared(made(gains, tokens), base, np.arange(len(tokens)) // each)
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / rounds <= 0.98


@pytest.mark.parametrize(
    "other", [made([1, 2], [3, 5]), made([1], [3]), made([1, 2], [3, 4], [0, 0]), made([1, 2], [3, 4], [1, 0])]
)
def test_scores_of_different_texts_are_refused(other: Score) -> None:
    """Other targets, another number of sequences, or other documents cannot be paired; the message describes both."""
    with pytest.raises(ValueError, match="same sequences; the first is of 2 sequences and 7 tokens"):
        paired_difference(made([1, 2], [3, 4]), other)


def test_documents_are_the_same_whatever_their_numbers_start_at() -> None:
    """Documents before them that are too short to be read move the numbers and change no text."""
    first, second = random_scores(12, 6)
    moved = replace(second, clusters=second.clusters + 3)
    assert paired_difference(first, moved) == paired_difference(first, second)


def test_a_score_whose_parts_are_of_different_lengths_is_refused() -> None:
    """It would be of no text at all; a prefix keeps its documents."""
    with pytest.raises(ValueError, match="'nll': 2, 'tokens': 2, 'clusters': 1"):
        made([1, 2], [3, 4], [0])
    assert made([1, 2, 3], [4, 5, 6], [7, 8, 8]).first(2).clusters.tolist() == [7, 8]


def test_percent_is_of_perplexity() -> None:
    """A difference in nats is reported as percent of perplexity, with its interval."""
    found = Difference(
        value=0.01, standard_error=0.002, low=math.log(1.005), high=math.log(1.02), p_value=0, clusters=9
    )
    assert found.percent() == pytest.approx((1.005016708, 0.5, 2.0))


# Holm


def test_holm_by_hand() -> None:
    """Five p-values in no order: times 5, 4, 3, 2 and 1 by rank, never falling, at most 1."""
    given_values = [0.04, 0.001, 0.03, 0.01, 0.9]
    assert holm(given_values) == pytest.approx([0.09, 0.005, 0.09, 0.04, 0.9])


def test_holm_at_its_edges() -> None:
    """One comparison needs no correction, none gives none, and nothing exceeds 1."""
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.0, 0.02, 0.02]) == [0.0, 0.04, 0.04]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_its_step_down_procedure_rejects(p_values: list[float]) -> None:
    """At any level, corrected values below it are those of the procedure: stop at the first that is too large."""
    corrected = holm(p_values)
    assert all(before <= after <= 1 for before, after in zip(p_values, corrected, strict=True))
    # Adding up is not associative: no level lies where rounding decides.
    for level in (0.0123, 0.0501, 0.3007):
        rejected: Counter[float] = Counter()
        for rank, p_value in enumerate(sorted(p_values)):
            if p_value * (len(p_values) - rank) > level:
                break
            rejected[p_value] += 1
        assert Counter(p for p, c in zip(p_values, corrected, strict=True) if c <= level) == rejected


def test_divergence_is_a_mean_with_its_interval() -> None:
    """Per target, from nothing; what was not measured is none, and is compared with nothing."""
    first, second = random_scores(12, 6)
    assert distance(first, "kl") is None
    with pytest.raises(ValueError, match="kl was not measured"):
        paired_difference(first, second, measure="kl")
    near = replace(first, kl=first.nll / 100, flips=first.tokens.double() / 8)
    far = replace(first, kl=first.nll / 50, flips=first.tokens.double() / 4)
    found = distance(near, "kl")
    assert found is not None
    assert found.value == pytest.approx(first.mean_nll / 100)
    assert 0 < found.low < found.value < found.high
    gap = paired_difference(far, near, measure="kl")
    assert gap.value == pytest.approx(found.value)
    assert gap.standard_error == pytest.approx(found.standard_error)
    flips = distance(near, "flips")
    assert flips is not None
    assert (flips.value, flips.standard_error) == (pytest.approx(1 / 8), pytest.approx(0, abs=1e-12))
