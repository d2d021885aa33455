"""Proposals: reproducible, never repeated, and better than chance also when most trials were pruned."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import optuna
import pytest

from hpo.search.proposal import STARTUP_TRIALS, presets, propose
from hpo.search.samplers.optunas import TPE
from hpo.search.samplers.registry import SAMPLERS
from hpo.space.space import INGREDIENTS, Space, make_space
from hpo.study.record import TrialRecord
from quant.setting import PRESETS, RECIPE, Setting
from tests.hpo.made_studies import pruned, trial

FLAT = make_space(Setting(), {"n_grid": 20, "n_calib": 16, "group_size": 64})
FULL = make_space(Setting(), {})
OPTIMUM = (0.73, 0.4)


def perplexity(setting: Setting) -> float:
    """A bowl around `OPTIMUM` in beta and log tau."""
    along = math.log(setting.tau / OPTIMUM[1]) / math.log(50)
    return 100 * math.exp(0.3 * ((setting.beta - OPTIMUM[0]) ** 2 + along**2))


def history(count: int, prune: bool, seed: int, space: Space = FLAT) -> list[TrialRecord]:
    """A study in which every fifth trial was completed and the others were pruned, or all were completed."""
    trials: list[TrialRecord] = []
    for number in range(count):
        setting = propose(space, trials, "random", seed)
        assert setting is not None
        made = pruned if prune and number % 5 else trial
        trials.append(made(number, space, setting, perplexity(setting)))
    return trials


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_proposal_depends_on_seed_and_history_alone(sampler: str) -> None:
    """The same study proposes the same setting again, whoever asks; a start-up of another seed another one."""
    trials = history(12, prune=False, seed=3)
    assert propose(FLAT, trials, sampler, seed=5) == propose(FLAT, list(trials), sampler, seed=5)
    assert len({propose(FLAT, [], sampler, seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_is_proposed_twice_and_a_small_space_is_used_up(sampler: str) -> None:
    """All settings of a finite space come, each once, then none; also where the sampler has long converged."""
    sizes = {"n_grid": "5..6", "n_calib": "16..64", "group_size": "64,128"}
    space = make_space(Setting(), {"beta": 0.5, "tau": 2, **sizes})
    trials: list[TrialRecord] = []
    while (setting := propose(space, trials, sampler, seed=0)) is not None:
        assert setting not in {trial.setting for trial in trials}
        trials.append(trial(len(trials), space, setting, 100.0 + setting.n_grid))
    assert len(trials) == space.size() == 12


def test_a_converged_process_looks_around_its_optimum() -> None:
    """Where the best point was tried, close ones follow: the study goes on, near the optimum."""
    trials = history(15, prune=False, seed=1)
    for _ in range(12):
        setting = propose(FLAT, trials, "gp", seed=1)
        assert setting is not None
        assert setting not in {trial.setting for trial in trials}
        trials.append(trial(len(trials), FLAT, setting, perplexity(setting)))
    assert min(trial.perplexity or math.inf for trial in trials) < 100.1


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_a_learning_sampler_leaves_chance_although_most_trials_were_pruned(sampler: str) -> None:
    """With 80 % pruned trials it still proposes far better settings than random search does."""
    found, chance = [], []
    for seed in range(6):
        trials = history(25, prune=True, seed=seed)
        assert sum(trial.state == "PRUNED" for trial in trials) == 20
        for sampled, name in ((found, sampler), (chance, "random")):
            setting = propose(FLAT, trials, name, seed)
            assert setting is not None
            sampled.append(perplexity(setting))
    assert np.mean(found) < (100.3 if sampler == "gp" else np.mean(chance))
    assert np.mean(chance) > 101.5


def test_pruned_trials_steer_by_their_estimates_not_by_their_running_values() -> None:
    """Turned upside down, estimates send the process elsewhere; running values are of other text."""
    trials = history(25, prune=True, seed=0)
    mirrored = [
        trial if trial.state != "PRUNED" or trial.setting is None else pruned(trial.number, FLAT, trial.setting, 130.0)
        for trial in trials
    ]
    assert propose(FLAT, trials, "gp", seed=0) != propose(FLAT, mirrored, "gp", seed=0)


def test_start_up_fills_the_space_whatever_the_first_trials_found() -> None:
    """The first trials are spread over the space instead of following one another."""
    trials: list[TrialRecord] = []
    for number in range(STARTUP_TRIALS):
        setting = propose(FULL, trials, "gp", seed=0)
        assert setting is not None
        trials.append(trial(number, FULL, setting, 100.0 - number))
    betas = sorted(trial.setting.beta for trial in trials if trial.setting)
    assert betas[0] < 0.2
    assert betas[-1] > 0.8
    assert max(high - low for low, high in pairwise(betas)) < 0.4
    assert {trial.group_size for trial in trials} == {32, 64, 128, 256}


def test_failed_and_waiting_trials_are_not_repeated_and_teach_nothing() -> None:
    """A failed setting is not proposed again; a study of nothing but failures still proposes."""
    setting = propose(FULL, [], "gp", seed=0)
    assert setting is not None
    trials = [
        trial(0, FULL, setting, None, state="FAIL", outcome="non-finite"),
        trial(1, FULL, Setting(beta=0.25), None, state="WAITING"),
    ]
    following = propose(FULL, trials, "gp", seed=0)
    assert following is not None
    assert following not in {trial.setting for trial in trials}


def test_a_running_trial_is_not_proposed_to_a_second_worker() -> None:
    """What another worker is at counts as tried."""
    trials = history(12, prune=False, seed=2)
    first = propose(FLAT, trials, "gp", seed=2)
    assert first is not None
    running = trial(12, FLAT, first, None, state="RUNNING")
    assert propose(FLAT, [*trials, running], "gp", seed=2) != first


def test_presets_that_become_equal_are_tried_once() -> None:
    """Projection is said in the origin; a space of one setting has one preset."""
    original = [name for name in PRESETS if name != RECIPE]
    assert [origin for origin, _ in presets(FULL)] == [f"preset {name}" for name in original]
    small = make_space(Setting(), {"group_size": 64})
    assert [origin for origin, _ in presets(small)] == [f"preset {name} (projected)" for name in original]
    row = make_space(Setting(method="praq-mixed"), {})
    assert presets(row) == [("preset defaults", Setting(method="praq-mixed"))]
    assert [origin for origin, _ in presets(make_space(row.base, {"keep_ratio": 0.1}))] == [
        "preset defaults (projected)"
    ]
    fixed = make_space(Setting(), {"beta": 0.5, "tau": 2})
    assert [origin for origin, _ in presets(fixed)] == ["preset balanced"]


def test_the_recommended_recipe_is_tried_where_the_space_has_its_ingredients() -> None:
    """With them it is the very preset; without one of them it would be another recipe."""
    tried = dict(presets(make_space(Setting(), INGREDIENTS)))
    assert tried[f"preset {RECIPE}"].canonical() == PRESETS[RECIPE].canonical()
    for name, value in (("rounding", "nearest"), ("range_search", "none")):
        space = make_space(Setting(), {**INGREDIENTS, name: value})
        assert not any(RECIPE in origin for origin, _ in presets(space))


def test_a_large_study_is_shown_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler sees what runs, the best trials, and others down to the worst, and no more than it can bear."""
    shown: list[float] = []
    monkeypatch.setitem(SAMPLERS, "tpe", replace(TPE, most=20))
    add_trial = optuna.Study.add_trial

    def counted(study: optuna.Study, frozen: optuna.trial.FrozenTrial) -> None:
        shown.append(frozen.value if frozen.state.name == "COMPLETE" else 0.0)
        add_trial(study, frozen)

    monkeypatch.setattr(optuna.Study, "add_trial", counted)
    settings = [FULL.at([(index + 0.5) / 120] * len(FULL.dimensions)) for index in range(120)]
    trials = [trial(index, FULL, setting, 20.0 + index % 60) for index, setting in enumerate(settings)]
    trials[5] = replace(trials[5], state="RUNNING", perplexity=None)
    assert propose(FULL, trials, "tpe", 0) not in settings
    assert len(shown) == 21
    assert 0.0 in shown
    values = sorted(math.exp(value) for value in shown if value)
    assert values[:10] == pytest.approx([20, 20, 21, 21, 22, 22, 23, 23, 24, 24])
    assert values[-1] > 70
