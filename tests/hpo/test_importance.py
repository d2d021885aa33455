"""Importances name what drives the value, at equal group size as well, and say so when there is too little to tell."""

import math
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from hpo.importance import FEWEST_TRIALS, Importances, importances
from hpo.record import StudyRecord
from hpo.space import make_space
from quant.methods import Setting
from storage.results import ResultStore
from tests.hpo.studies import Maker, Truth, study_of


def made(store: Path, truth: Truth, trials: int, sizes: str = "64") -> tuple[StudyRecord, Importances]:
    space = make_space(Setting(), {"group_size": sizes})
    maker = Maker(ResultStore(store), space, truth=truth)
    record = study_of(maker, [maker.complete(number, maker.draw()) for number in range(trials)]).record
    return record, importances(record, space.distributions)


def by_beta(setting: Setting) -> float:
    return 3.5 + (0.4 * (setting.beta - 0.3) ** 2 if setting.method == "gwh-praq-v2" else 0.2)


def by_bits(setting: Setting) -> float:
    return by_beta(setting) / 2 + 0.1 * math.log2(setting.group_size)


@pytest.mark.parametrize("evaluator", ["ped_anova", "fanova", "mean"])
def test_what_drives_the_value_is_ranked_first(evaluator: str, tmp_path: Path) -> None:
    """Beta alone decides here: either evaluator gives it more than everything that does nothing; shares add up to 1."""
    _, found = made(tmp_path, by_beta, 40)
    shares = getattr(found.overall, evaluator)
    assert set(shares) == {"beta", "tau", "n_grid", "n_calib"}
    assert shares["beta"] > 2 * max(share for name, share in shares.items() if name != "beta")
    assert sum(shares.values()) == pytest.approx(1)
    assert found.overall.reason is None
    assert found.equal_size is None


def test_another_driver_gives_another_ranking(tmp_path: Path) -> None:
    """The first place is not beta's by birth."""
    _, found = made(tmp_path, lambda setting: 3 + 0.01 * setting.n_grid, 40)
    assert next(iter(found.overall.mean)) == "n_grid"
    assert list(found.overall.mean.values()) == sorted(found.overall.mean.values(), reverse=True)


def test_group_size_is_told_apart_from_the_rest(tmp_path: Path) -> None:
    """It dominates over all trials; at equal group size it is left out, and beta leads."""
    record, found = made(tmp_path, by_bits, 60, "32,64")
    assert next(iter(found.overall.mean)) == "group_size"
    assert found.equal_size is not None
    assert next(iter(found.equal_size.mean)) == "beta"
    assert "group_size" not in found.equal_size.ped_anova
    sizes = [trial.group_size for trial in record.complete]
    most = max((32, 64), key=sizes.count)
    assert (found.equal_size.scope, found.equal_size.trials) == (f"group size {most}", sizes.count(most))


def test_equal_group_size_is_the_most_frequent_one(tmp_path: Path) -> None:
    """Not the best, and not the first."""
    space = make_space(Setting(), {"group_size": "32,64"})
    maker = Maker(ResultStore(tmp_path), space)
    sizes = [32] * 3 + [64] * 12
    trials = [maker.complete(number, replace(maker.draw(), group_size=size)) for number, size in enumerate(sizes)]
    found = importances(study_of(maker, trials).record, space.distributions).equal_size
    assert found is not None
    assert (found.scope, found.trials, found.reason) == ("group size 64", 12, None)


@pytest.mark.parametrize("trials", [0, 1, FEWEST_TRIALS - 1])
def test_too_few_trials_give_a_sentence_and_no_numbers(trials: int, tmp_path: Path) -> None:
    """Chance is not shown as importance."""
    _, found = made(tmp_path, by_beta, trials)
    assert found.overall.reason == (
        f"All trials: {trials} complete trials are too few for importances; it takes {FEWEST_TRIALS}."
    )
    assert not found.overall.ped_anova
    assert not found.overall.fanova
    assert found.overall.mean == {}


def test_enough_trials_in_all_may_be_too_few_of_one_group_size(tmp_path: Path) -> None:
    """Each scope is judged by its own trials."""
    _, found = made(tmp_path, by_bits, FEWEST_TRIALS, "32,64")
    assert found.overall.reason is None
    assert found.equal_size is not None
    assert "too few" in str(found.equal_size.reason)


def test_only_complete_trials_count(tmp_path: Path) -> None:
    """Pruned and failed trials have no measured value to explain."""
    space = make_space(Setting(), {"group_size": 64})
    maker = Maker(ResultStore(tmp_path), space)
    trials = [maker.complete(number, maker.draw()) for number in range(FEWEST_TRIALS - 1)]
    trials += [maker.pruned(number, maker.draw()) for number in range(FEWEST_TRIALS - 1, 2 * FEWEST_TRIALS)]
    assert "too few" in str(importances(study_of(maker, trials).record, space.distributions).overall.reason)


def test_a_constant_value_has_no_importances(tmp_path: Path) -> None:
    """Equal perplexities give a sentence instead of equal shares."""
    record, _ = made(tmp_path, by_beta, FEWEST_TRIALS)
    flat = replace(record, trials=tuple(replace(trial, perplexity=30.0) for trial in record.trials))
    found = importances(flat, record.distributions).overall
    assert "same perplexity" in str(found.reason)
    assert not found.mean


def test_trials_without_a_finite_value_are_left_out(tmp_path: Path) -> None:
    """An overflow is not a perplexity."""
    record, before = made(tmp_path, by_beta, 2 * FEWEST_TRIALS)
    broken = replace(record.trials[0], perplexity=math.inf)
    found = importances(replace(record, trials=(broken, *record.trials[1:])), record.distributions)
    assert found.overall.trials == before.overall.trials - 1


def test_one_hyperparameter_alone_has_nothing_to_compare(tmp_path: Path) -> None:
    """A share of 100 % by construction says nothing."""
    fixed = {"group_size": 64, "tau": 2, "n_grid": 20, "n_calib": 128}
    space = make_space(Setting(), fixed)
    maker = Maker(ResultStore(tmp_path), space)
    record = study_of(maker, [maker.complete(number, maker.draw()) for number in range(20)]).record
    assert "only beta varies" in str(importances(record, space.distributions).overall.reason)


def test_importances_are_repeatable_and_leave_no_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The same record gives the same numbers; Optuna says nothing and is as talkative as before."""
    before = optuna.logging.get_verbosity()
    record, found = made(tmp_path, by_beta, 20)
    assert importances(record, record.distributions) == found
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
