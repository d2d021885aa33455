"""Predicted against measured damage of plans: what is said of it, and what is not said of too few."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from hpo.report.additivity import FEWEST, Prediction, agreement, rank_correlation
from hpo.report.plan_captions import plan_captions
from hpo.report.plan_data import PlanData
from objectives.paired import Difference


def plan(predicted: float, measured: float) -> Prediction:
    """A plan whose measured divergence has an interval of a tenth."""
    divergence = Difference(
        value=measured, standard_error=0.05, low=measured - 0.1, high=measured + 0.1, p_value=0.0, clusters=9
    )
    return Prediction(name="trial 1", predicted=predicted, measured=divergence, alike=True)


def test_ranks_of_fewer_plans_than_it_takes_are_not_told() -> None:
    plans = [plan(0.1 * place, 0.2 * place) for place in range(1, FEWEST)]
    assert rank_correlation(plans) is None
    assert agreement(plans) == (
        f"Measured is 2.00 times predicted in the middle, 2.00 to 2.00 in all. {FEWEST - 1} plans are too few, or too "
        "much alike, to tell whether the ranks agree."
    )


def test_ranks_of_plans_that_were_predicted_alike_are_not_told() -> None:
    assert rank_correlation([plan(0.1, 0.1 * place) for place in range(1, 30)]) is None


def test_the_interval_of_the_rank_correlation_covers_what_many_samples_have() -> None:
    generator = np.random.default_rng(1)
    missed = 0
    truth = spearmanr(*correlated(generator, 20000)).statistic
    for _ in range(600):
        predicted, measured = correlated(generator, 24)
        correlation = rank_correlation([plan(*pair) for pair in zip(predicted, measured, strict=True)])
        assert correlation is not None
        missed += not correlation[1] <= truth <= correlation[2]
    assert 0.02 < missed / 600 < 0.09


def correlated(generator: np.random.Generator, count: int) -> tuple[list[float], list[float]]:
    """Two numbers each that go up together, most of the time."""
    common = generator.normal(size=count)
    first, second = (np.exp(common + 0.5 * generator.normal(size=count)) for _ in range(2))
    return [*map(float, first)], [*map(float, second)]


def test_ranks_that_agree_are_said_with_how_far_levels_are_apart() -> None:
    plans = [plan(0.1 * place, 0.1 * place * (2 if place == 3 else 1)) for place in range(1, 13)]
    said = agreement(plans)
    correlation = rank_correlation(plans)
    assert correlation is not None
    assert math.isclose(correlation[0], spearmanr(range(1, 13), [p.measured.value for p in plans]).statistic)
    assert said.startswith("Measured is 1.00 times predicted in the middle, 1.00 to 2.00 in all.")
    assert f"over 12 plans is {correlation[0]:.3f} [" in said


@pytest.mark.parametrize("plans", [[], [plan(0.0, 0.1)]])
def test_nothing_to_compare_is_said(plans: list[Prediction]) -> None:
    assert agreement(plans).startswith(("No plan rounds as the recipe", "Nothing was predicted to be lost"))


def test_plans_that_round_otherwise_than_what_was_measured_do_not_count() -> None:
    """They are drawn, and predicted for another recipe; what is said of the others is as without them."""
    alike = [plan(0.1 * place, 0.1 * place) for place in range(1, 13)]
    others = [replace(plan(1.0, 0.1), alike=False)] * 2
    readings = []
    for predictions in (alike, [*alike, *others]):
        written = plan_captions(PlanData(name="trial 1", predictions=tuple(predictions)))
        readings.append(next(caption.reading for caption in written if caption.key == "additivity"))
    assert agreement(alike) in readings[0]
    said = " 2 squares round otherwise than the recipe that sites were measured by, and do not count."
    assert readings[1] == readings[0] + said
