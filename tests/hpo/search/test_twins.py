"""Twins of measured settings: what the paired noise cannot tell apart is tried after everything else."""

from dataclasses import replace

import numpy as np
import pytest

from hpo.search.acquisition import best_candidates
from hpo.search.proposal import propose
from hpo.search.samplers.gp import candidates
from hpo.search.stopping import edges, has_converged
from hpo.search.surrogate import fit
from hpo.search.twins import SHARE, are_twins, unknown
from hpo.space.size_class import size_class_of
from hpo.space.space import Space, make_space
from hpo.study.record import TrialRecord
from quant.setting import Setting
from tests.hpo.made_studies import trial

FLAT = make_space(Setting(), {"n_grid": 20, "n_calib": 16, "group_size": 64})
SIZES = make_space(Setting(), {"n_grid": 20, "n_calib": 16, "group_size": "32,64"})
NOISE = 0.006


def corner(setting: Setting) -> float:
    """Perplexity, least where beta is least and tau is largest: a slope of a nat per width of the cube."""
    beta, tau = FLAT.fractions(replace(setting, group_size=64))
    return float(30 * np.exp(0.3 * beta - 0.1 * tau))


def searched(space: Space, count: int, noise: float = NOISE) -> list[TrialRecord]:
    """A study as the process led it."""
    trials: list[TrialRecord] = []
    for number in range(count):
        setting = propose(space, trials, "gp", 0, lambda _: noise)
        assert setting is not None
        trials.append(trial(number, space, setting, corner(setting)))
    return trials


def points(space: Space, *settings: Setting) -> np.ndarray:
    return np.array([space.fractions(setting) for setting in settings])


@pytest.mark.parametrize("distance", [0.0, 0.001, 0.05, 0.3])
def test_settings_are_twins_where_less_than_the_noise_lies_between(distance: float) -> None:
    """The root mean square of the difference decides, slope included; where no noise is known nothing is a twin."""
    trials = searched(FLAT, 12)
    settings = [trial.setting for trial in trials if trial.setting]
    surrogate = fit(points(FLAT, *settings), np.log([corner(setting) for setting in settings]), np.zeros(12))
    measured = points(FLAT, settings[3])
    moved = np.clip(measured + np.array([distance, 0]), 0, 1)
    classes = [size_class_of(settings[3])]
    mean, deviation = (float(values[0, 0]) for values in surrogate.differences(moved, measured))
    assert mean == pytest.approx(0.3 * (moved - measured)[0, 0], abs=0.005)
    expected = np.hypot(mean, deviation)
    for noise, twins in ((expected / SHARE * 0.99, False), (expected / SHARE * 1.01 + 1e-12, True)):
        found = are_twins(surrogate, moved, classes, measured, classes, lambda _, noise=noise: noise)
        assert found.tolist() == [twins]
    assert not are_twins(surrogate, moved, classes, measured, classes, unknown).any()


def test_differences_are_those_of_a_joint_posterior() -> None:
    """Against the full covariance of both sets of points, noise left out."""
    generator = np.random.default_rng(0)
    measured, first, second = (generator.random((count, 2)) for count in (15, 4, 3))
    surrogate = fit(measured, np.sin(3 * measured[:, 0]) + generator.normal(0, 0.1, 15), np.full(15, 0.01))
    both = np.vstack([first, second])
    process, smooth = surrogate.process, surrogate.process.kernel_.k1
    known = process.kernel_(measured) + np.diag(process.alpha)
    across = smooth(both, measured)
    covariance = smooth(both) - across @ np.linalg.solve(known, across.T)
    mean, deviation = surrogate.differences(first, second)
    for row in range(4):
        for column in range(3):
            pair = np.array([row, 4 + column])
            variance = np.array([1, -1]) @ covariance[np.ix_(pair, pair)] @ np.array([1, -1])
            assert deviation[row, column] == pytest.approx(surrogate.scale * np.sqrt(variance), rel=1e-6)
            expected = surrogate.predict(both[pair])[0]
            assert mean[row, column] == pytest.approx(expected[0] - expected[1], abs=1e-9)


def test_twins_come_after_all_others_and_the_least_known_of_them_first() -> None:
    """Others keep their order by expected improvement."""
    trials = searched(FLAT, 12)
    ranked = candidates(FLAT, trials, 1, lambda _: NOISE)
    kinds = [candidate.twin for candidate in ranked]
    assert kinds == sorted(kinds)
    assert {*kinds} == {False, True}
    gains = [candidate.improvement for candidate in ranked if not candidate.twin]
    assert gains == sorted(gains, reverse=True)
    assert not any(candidate.twin for candidate in candidates(FLAT, trials, 1))


def test_other_bits_are_no_twin() -> None:
    """A setting that was measured in groups of 32 is not known in groups of 64, however near it lies."""
    trials = [
        trial(number, SIZES, Setting(beta=number / 12, tau=2, n_calib=16, group_size=32), 30.0 + number / 100)
        for number in range(12)
    ]
    settings = [replace(made.setting, group_size=size) for made in trials if made.setting for size in (32, 64)]
    ranked = best_candidates(SIZES, trials, settings, lambda _: 1.0)
    assert {candidate.setting.group_size for candidate in ranked if candidate.twin} == {32}
    assert {candidate.setting.group_size for candidate in ranked if not candidate.twin} == {64}


def test_no_trial_is_wasted_on_twins_of_a_corner() -> None:
    """Where the best lies in a corner, a study without a noise crowds there; with it, no setting is as near another."""

    def nearest(trials: list[TrialRecord]) -> float:
        settings = [made.setting for made in trials if made.setting]
        distances = np.linalg.norm(points(FLAT, *settings)[:, None] - points(FLAT, *settings), axis=-1)
        return float(np.sort(distances[np.triu_indices(len(settings), 1)])[:6].mean())

    crowded, spread = searched(FLAT, 16, 0.0), searched(FLAT, 16)
    assert nearest(spread) > 3 * nearest(crowded)
    best = min(trial.perplexity or 99 for trial in spread)
    assert best < 1.003 * min(trial.perplexity or 99 for trial in crowded)


def test_a_study_of_twins_alone_has_converged_and_goes_on_where_least_is_known() -> None:
    """With a noise above all differences everything is a twin; the study ends where it is told to, or explores."""
    trials = searched(FLAT, 12)
    assert has_converged(FLAT, trials, lambda _: 10.0, 0)
    ranked = candidates(FLAT, trials, 0, lambda _: 10.0)
    assert all(candidate.twin for candidate in ranked)
    assert propose(FLAT, trials, "gp", 0, lambda _: 10.0) is not None
    assert not has_converged(FLAT, trials[:9], lambda _: 10.0, 0)


def test_edges_of_the_space_are_named() -> None:
    """With the value there; fixed dimensions, choices and what decides about bits are no edges."""
    space = make_space(Setting(), {"group_size": "32,64", "n_calib": "16..64"})
    assert edges(space, Setting(beta=0, tau=5, n_grid=20, n_calib=32)) == "beta=0 (lower edge), tau=5 (upper edge)"
    assert edges(space, Setting(beta=0.995, tau=1, n_grid=20, n_calib=64)) == (
        "beta=0.995 (upper edge), n_calib=64 (upper edge)"
    )
    assert edges(space, Setting(beta=0.5, tau=1, n_grid=20, n_calib=32)) == "no edge of the space"
