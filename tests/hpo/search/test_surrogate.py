"""The surrogate: exact where values are, doubtful where they are not, and led by how exactly values are known."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from hpo.search.surrogate import Surrogate, expected_improvement, fit

Array = NDArray[np.float64]


def bowl(points: Array) -> Array:
    """Smooth, least at (0.7, 0.3); the third dimension does nothing."""
    return np.asarray((points[:, 0] - 0.7) ** 2 + 0.5 * (points[:, 1] - 0.3) ** 2)


@pytest.fixture
def points() -> Array:
    """Forty points that fill the cube."""
    return stats.qmc.Sobol(3, rng=np.random.default_rng(0)).random(64)[:40]


@pytest.fixture
def surrogate(points: Array) -> Surrogate:
    """Of the bowl, known exactly."""
    return fit(points, bowl(points), np.zeros(len(points)))


def test_a_smooth_function_is_learnt(surrogate: Surrogate) -> None:
    """Between the points it errs by a hundredth of the range, and says so."""
    others = np.random.default_rng(1).random((200, 3))
    mean, deviation = surrogate.predict(others)
    error = mean - bowl(others)
    assert np.abs(error).mean() < 0.01
    assert (np.abs(error) < 3 * deviation).mean() > 0.95


def test_doubt_grows_with_the_distance(surrogate: Surrogate, points: Array) -> None:
    """Least at the points that were measured."""
    near, unknown = surrogate.predict(points)[1], surrogate.predict(np.array([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))[1]
    assert near.mean() < unknown.min()


def test_improvement_leads_to_the_optimum(surrogate: Surrogate, points: Array) -> None:
    """The most promising of many points is near it."""
    others = np.random.default_rng(2).random((500, 3))
    best = others[expected_improvement(*surrogate.predict(others), bowl(points).min()).argmax()]
    assert bowl(best[None])[0] < 0.01


def test_a_vague_value_counts_less_than_an_exact_one(points: Array) -> None:
    """One wrong value moves the mean near it, and hardly so where it is known to be vague."""
    values = bowl(points)
    wrong = values.copy()
    wrong[7] += 1.0
    vague = np.zeros(len(points))
    vague[7] = 4.0
    shifts = []
    for variances in (np.zeros(len(points)), vague):
        expected = fit(points, values, variances).predict(points[[7]])[0]
        shifts.append(abs(float((fit(points, wrong, variances).predict(points[[7]])[0] - expected)[0])))
    assert shifts[1] < 0.2 * shifts[0]


def test_believing_a_point_takes_the_doubt_from_it_and_leaves_the_mean(surrogate: Surrogate) -> None:
    """So that a second worker looks elsewhere."""
    corner = np.array([[0.0, 1.0, 0.0]])
    before, after = surrogate.predict(corner), surrogate.fantasized(corner).predict(corner)
    assert after[0] == pytest.approx(before[0], abs=1e-3)
    assert after[1] < before[1]


@pytest.mark.parametrize("count", [1, 2])
def test_a_few_points_are_enough_for_a_guess(count: int, points: Array) -> None:
    """Finite numbers from the first value on, also where all values are equal."""
    for values in (bowl(points)[:count], np.full(count, 3.0)):
        mean, deviation = fit(points[:count], values, np.zeros(count)).predict(points)
        assert np.isfinite(mean).all()
        assert np.isfinite(deviation).all()


def test_expected_improvement_is_the_mean_of_what_is_gained() -> None:
    """Equal to an average over many draws, and to the gain itself where nothing is in doubt."""
    draws = np.random.default_rng(0).normal(1.0, 0.5, 400_000)
    found = expected_improvement(np.array([1.0]), np.array([0.5]), 0.8)
    assert found[0] == pytest.approx(np.maximum(0, 0.8 - draws).mean(), rel=0.02)
    assert expected_improvement(np.array([0.3, 1.0]), np.zeros(2), 0.8) == pytest.approx([0.5, 0.0])
