"""Expected improvements: on the best of equal bits, deaf to catastrophes, led by what is known of pruned trials."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpo.search.acquisition import best_candidates, considered_settings, most_informative, nats_of, winsorized
from hpo.search.samplers.qmc import sobol
from hpo.space.size_class import size_class_of
from hpo.space.space import Space, make_space
from hpo.study.estimate import Estimate
from hpo.study.record import TrialRecord
from quant.setting import Setting
from tests.hpo.made_studies import pruned, trial
from tests.hpo.processes import write_considered
from tests.processes import finish, start

FLAT = make_space(Setting(), {"n_grid": 20, "n_calib": 16, "group_size": 64})
SIZES = make_space(Setting(), {"n_grid": 20, "n_calib": 16, "group_size": "32,64"})


def perplexity(setting: Setting) -> float:
    """A bowl in beta and log tau; groups of 32 are a tenth better."""
    along = math.log(setting.tau / 0.4) / math.log(50)
    bowl = 0.3 * ((setting.beta - 0.7) ** 2 + along**2)
    return 100 * math.exp(bowl - 0.1 * (setting.group_size == 32))


def history(space: Space, count: int) -> list[TrialRecord]:
    """Completed trials all over the space."""
    settings = itertools.islice(sobol(space, 0), count)
    return [trial(number, space, setting, perplexity(setting)) for number, setting in enumerate(settings)]


def considered(space: Space, trials: list[TrialRecord]) -> list[Setting]:
    return considered_settings(space, trials, sobol(space, 1), 1)


def test_the_most_promising_setting_is_near_the_optimum() -> None:
    """Of all that is considered; improvements fall from the first to the last."""
    trials = history(FLAT, 20)
    found = best_candidates(FLAT, trials, considered(FLAT, trials))
    assert perplexity(found[0].setting) < 100.5
    gains = [candidate.improvement for candidate in found]
    assert gains == sorted(gains, reverse=True)
    assert min(gains) >= 0


def test_every_group_size_is_judged_by_its_own_best() -> None:
    """Where only the smaller group was searched, what is promised is of the other, although that is worse."""
    trials = [trial for trial in history(SIZES, 60) if trial.setting and trial.setting.group_size == 32]
    trials += [trial(len(trials), SIZES, Setting(beta=0, tau=5, n_calib=16, group_size=64), 120.0)]
    found = best_candidates(SIZES, trials, considered(SIZES, trials))
    assert found[0].setting.group_size == 64
    assert {candidate.setting.group_size for candidate in found} == {32, 64}


def test_the_neighbourhoods_of_the_best_are_looked_at_closely() -> None:
    """Of every size class; all of it inside the space, nothing twice."""
    trials = history(SIZES, 30)
    found = considered(SIZES, trials)
    assert len(set(found)) == len(found)
    for size in (32, 64):
        best = min(
            (trial for trial in trials if trial.setting and trial.setting.group_size == size), key=nats_of
        ).setting
        assert best is not None
        near = [
            setting
            for setting in found
            if size_class_of(setting) == size_class_of(best)
            and abs(setting.beta - best.beta) < 0.05
            and abs(math.log(setting.tau / best.tau)) < 0.3
        ]
        assert len(near) >= 8


def test_a_catastrophe_hides_no_differences() -> None:
    """One broken model among good ones leaves the largest improvement where it is."""
    trials = history(FLAT, 20)
    broken = trial(20, FLAT, Setting(beta=0.05, tau=4.5, n_calib=16, group_size=64), 1e6)
    found = best_candidates(FLAT, [*trials, broken], considered(FLAT, trials))
    assert perplexity(found[0].setting) < 100.5


def test_winsorized_values_keep_the_order_of_the_better_half() -> None:
    """And no value is farther above the middle than twice the middle is above the best."""
    values = np.array([1.0, 2.0, 3.0, 50.0, 1000.0])
    assert winsorized(values).tolist() == [1.0, 2.0, 3.0, 7.0, 7.0]


def test_what_others_are_at_promises_less() -> None:
    """The setting of a running trial, and what is near it."""
    trials = history(FLAT, 12)
    settings = considered(FLAT, trials)
    first = best_candidates(FLAT, trials, settings)[0]
    running = trial(12, FLAT, first.setting, None, state="RUNNING")
    after = {
        candidate.setting: candidate.improvement for candidate in best_candidates(FLAT, [*trials, running], settings)
    }
    assert after[first.setting] < 0.8 * first.improvement


def test_a_vague_estimate_leaves_more_to_hope_for_than_an_exact_one() -> None:
    """Of two pruned trials with the same estimate."""
    trials, setting = history(FLAT, 12), FLAT.at([0.9, 0.4])
    estimates = [
        Estimate(mean_nll=math.log(102), standard_error=error, degrees=9.0, against=0) for error in (5e-5, None)
    ]
    exact, vague = (replace(pruned(12, FLAT, setting, 102.0), estimate=estimate) for estimate in estimates)
    gains = [best_candidates(FLAT, [*trials, unfinished], [setting])[0].improvement for unfinished in (exact, vague)]
    assert gains[0] < gains[1]


@pytest.mark.parametrize("most", [10, 20])
def test_a_model_is_told_the_best_and_some_of_the_rest(most: int) -> None:
    """In the order of the study, no more than it can bear, the worst among them."""
    trials = [trial(number, FLAT, Setting(beta=number / 100), 20.0 + number % 60) for number in range(99)]
    chosen = most_informative(trials, most)
    assert len(chosen) <= most
    assert [trial.number for trial in chosen] == sorted(trial.number for trial in chosen)
    values = sorted(trial.perplexity or 0 for trial in chosen)
    assert values[: most // 2] == pytest.approx(sorted(trial.perplexity or 0 for trial in trials)[: most // 2])
    assert values[-1] > 60
    assert most_informative(trials[:3], most) == trials[:3]


def test_nothing_is_promised_where_nothing_is_considered() -> None:
    """A space may be used up."""
    assert best_candidates(FLAT, history(FLAT, 12), []) == []


def test_a_pruned_trial_without_an_estimate_teaches_nothing() -> None:
    """Its running perplexity is one of other text."""
    lost = trial(3, FLAT, Setting(), None, state="PRUNED", running={8: 20.0})
    assert nats_of(lost) == math.inf


def test_what_is_considered_is_the_same_in_every_process(tmp_path: Path) -> None:
    """Also where a size class has no group size, whose hash is another one in every process."""
    write_considered(tmp_path / "here")
    assert finish(start(write_considered, tmp_path / "there")) == [0]
    assert (tmp_path / "there").read_text() == (tmp_path / "here").read_text()
    assert "praq-mixed" in (tmp_path / "here").read_text()
