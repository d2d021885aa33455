"""fANOVA gives Optuna's numbers, and those that can be worked out by hand."""

import warnings

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from hpo.verdict.fanova import fanova

# By name, as Optuna orders them.
SPACE: dict[str, BaseDistribution] = {
    "beta": FloatDistribution(0, 1),
    "log2_n_calib": IntDistribution(4, 9),
    "n_grid": IntDistribution(5, 40),
    "tau": FloatDistribution(0.1, 5, log=True),
}
BOUNDS = np.array([[0, 1], [4, 9], [5, 40], [0.1, 5]], float)


@pytest.mark.parametrize("trials", [10, 60])
def test_the_numbers_are_those_of_optuna(trials: int) -> None:
    """The same forest's variances, leaf by leaf or all at once."""
    random = np.random.default_rng(trials)
    low, high = BOUNDS.T
    points = low + (high - low) * random.random((trials, 4))
    points[:, 1:3] = points[:, 1:3].round()
    values = (points[:, 0] - 0.3) ** 2 + 0.1 * np.abs(np.log(points[:, 3] / 2.5)) + 0.01 * points[:, 1]
    study = optuna.create_study()
    for point, value in zip(points.tolist(), values.tolist(), strict=True):
        whole = {"log2_n_calib": int(point[1]), "n_grid": int(point[2])}
        params = {**dict(zip(SPACE, point, strict=True)), **whole}
        study.add_trial(create_trial(value=value, params=params, distributions=SPACE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        expected = get_param_importances(study, evaluator=FanovaImportanceEvaluator(n_trees=16, seed=3))
    found = fanova(points, values, BOUNDS, 16, 3)
    assert found is not None
    assert dict(zip(SPACE, found.tolist(), strict=True)) == pytest.approx(dict(expected), abs=1e-12)


def test_a_sum_is_taken_apart() -> None:
    """Over a full grid the shares of x and 2 y are as 1 to 4, and a parameter that does nothing has none."""
    ends = np.linspace(0, 1, 21)
    points = np.array(np.meshgrid(ends, ends, [0.0, 0.5, 1.0])).reshape(3, -1).T
    found = fanova(points, points[:, 0] + 2 * points[:, 1], np.array([[0, 1]] * 3, float), 16, 0)
    assert found is not None
    assert found == pytest.approx([0.2, 0.8, 0], abs=0.01)


def test_equal_values_have_no_shares() -> None:
    """There is no variance to explain."""
    points = np.random.default_rng(0).random((12, 2))
    assert fanova(points, np.ones(12), np.array([[0, 1]] * 2, float), 8, 0) is None
