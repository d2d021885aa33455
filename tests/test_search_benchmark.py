"""Replays on tables of truth: what is counted is what a study would have read, and a table survives its file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import importance_truth
from benchmarks import truth as tables
from benchmarks.clairvoyant import fitted_covariances, search
from benchmarks.divergence_search import SURROGATES, pruners
from benchmarks.divergence_search import search as divergence_search
from benchmarks.honesty import honesty
from benchmarks.replay import Fixed, Ours, Snap, Until, best_was_pruned, field, proposer, regret_curve, replay
from benchmarks.search import pruner_searches, sampler_searches, stopped_searches, summary
from benchmarks.truth import Text, Truth, drawn, load, save
from benchmarks.winners_curse import equal, halves, redrawn, studies
from hpo.search.pruners.registry import Pruning
from hpo.space.space import make_space
from quant.setting import Setting

SEQUENCES, TOKENS = 32, 100


@pytest.fixture(scope="module")
def made() -> Truth:
    """Sixty settings whose mean NLL is a bowl in beta, on two texts; sequences differ far more than settings."""
    space = make_space(Setting(), {"group_size": 64, "n_calib": "16,32"})
    settings, presets = drawn(space, 60)
    generator = np.random.default_rng(0)

    def text(source: str) -> Text:
        hard = generator.normal(3.5, 0.3, SEQUENCES)
        means = np.array([0.2 * (setting.beta - 0.3) ** 2 for setting in settings])
        nll = TOKENS * (means[:, None] + hard + generator.normal(0, 0.01, (len(settings), SEQUENCES)))
        return Text(
            source=source,
            tokens=np.full(SEQUENCES, TOKENS),
            clusters=np.arange(SEQUENCES),
            nll=nll,
            references=TOKENS * (hard + generator.normal(0.05, 0.01, (4, SEQUENCES))),
        )

    losses = generator.random((len(settings), 2))
    return Truth(
        model="made",
        space=space,
        settings=tuple(settings),
        presets=presets,
        loss=losses,
        log_gain=losses[:, 0],
        texts=(text("one"), text("other")),
    )


@pytest.fixture(scope="module")
def diverging(made: Truth) -> Truth:
    """The same with divergence on the first text: the mean damage of each setting with a tenth of the scatter."""
    generator = np.random.default_rng(1)
    first = made.texts[0]
    damage = first.mean_nll - first.mean_nll.min() + 0.01
    kl = TOKENS * (damage[:, None] + generator.normal(0, 0.001, first.nll.shape))
    return replace(made, texts=(replace(first, kl=kl, kl_references=kl[:4]), *made.texts[1:]))


def test_a_table_survives_its_file(made: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings exactly, values to what float32 holds."""
    monkeypatch.setattr(tables, "DIRECTORY", tmp_path)
    save(made)
    found = load("made", 64)
    assert found.settings == made.settings
    assert found.presets == made.presets
    for before, after in zip(made.texts, found.texts, strict=True):
        assert after.source == before.source
        assert after.mean_nll == pytest.approx(before.mean_nll, abs=1e-5)


def test_every_row_is_given_out_once(made: Truth) -> None:
    """The nearest first; none when all are gone."""
    snap = Snap(made)
    assert snap.nearest(made.settings[17]) == 17
    rows = [snap.nearest(made.settings[17]) for _ in range(len(made.settings))]
    assert rows[-1] is None
    assert sorted(row for row in rows if row is not None) == [row for row in range(len(made.settings)) if row != 17]


@pytest.mark.parametrize("name", ["ours", "random", "TPE, median", "TPE, wilcoxon", "GP, hyperband", "presets"])
def test_tokens_are_what_was_read(name: str, made: Truth) -> None:
    """Each trial once, complete or given up; a full trial's tokens are one; another seed is another study."""
    where = field(made, 0)
    ended = replay(sampler_searches()[name](where, 0), where, 8.0, 30)
    assert len({trial.row for trial in ended}) == len(ended)
    assert ended[-1].tokens == pytest.approx(sum(trial.read for trial in ended) / SEQUENCES)
    assert all(trial.complete == (trial.read == SEQUENCES) for trial in ended)
    again = replay(sampler_searches()[name](where, 0), where, 8.0, 30)
    assert [trial.row for trial in again] == [trial.row for trial in ended]


def test_regret_falls_when_a_better_trial_is_complete(made: Truth) -> None:
    """Infinite before the first one, and nothing once the best is found."""
    where = field(made, 0)
    order = list(np.argsort(-where.text.mean_nll))[-3:]
    ended = replay(Fixed(order), where, 10.0, 10)
    curve = regret_curve(ended, where, np.array([0.5, 1.0, 2.0, 3.0]))
    assert np.isinf(curve[0])
    assert curve[1] > curve[2] > curve[3] == 0
    assert not best_was_pruned(ended, where)


def test_workers_share_the_tokens_and_know_less(made: Truth) -> None:
    """Four at a time evaluate as much as one does, but for what is under way when the budget is used up."""
    where = field(made, 3)
    ended = replay(Ours(where, 3, proposer("gp"), Pruning()), where, 8.0, 100, workers=4)
    assert 7.0 <= ended[-1].tokens <= 9.0
    assert len({trial.row for trial in ended}) == len(ended)


@pytest.mark.parametrize("orders", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_the_paired_pruner_saves_tokens_and_keeps_the_best(made: Truth, orders: int) -> None:
    """On several orders of the text: two thirds of what full trials take at most, the best never given up."""
    searches = pruner_searches()
    found = []
    for seed in range(orders):
        where = field(made, seed)
        found.append(summary(replay(searches["paired 0.02"](where, seed), where, 40.0, 30), where))
    assert np.mean([study["tokens"] for study in found]) < 0.65 * 30
    assert not any(study["best_pruned"] for study in found)


def test_a_study_ends_when_its_rule_says_so(made: Truth) -> None:
    """After as many trials as it had when the rule first held; patience ends one before it has tried everything."""
    where = field(made, 0)
    ours = Ours(where, 0, proposer("random"), Pruning())
    assert len(replay(Until(ours, lambda search: len(search.trials) >= 7), where, 100.0, 30)) == 7
    ended = replay(stopped_searches()["patience 5"](where, 0), where, 100.0, len(made.settings))
    best = min((trial for trial in ended if trial.complete), key=lambda trial: float(where.text.mean_nll[trial.row]))
    assert len(ended) - 1 - ended.index(best) == 5 < len(ended) < len(made.settings)


def test_divergence_survives_the_file_of_a_table(
    diverging: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it was measured; tables from before have none, and their scores neither."""
    monkeypatch.setattr(tables, "DIRECTORY", tmp_path)
    save(diverging)
    read, plain = load("made", 64).texts
    assert read.kl == pytest.approx(diverging.texts[0].kl, rel=1e-6)
    assert (read.score(3).mean_kl is None, plain.score(3).mean_kl is None) == (False, True)
    order = np.array([2, 0])
    assert read.ordered(order).score(3).kl == pytest.approx(read.score(3).of("kl")[order])


def test_divergence_gives_up_sooner_where_it_is_what_decides(diverging: Truth) -> None:
    """On a table whose divergence has the order of its perplexity and less scatter, for fewer tokens."""
    compared = pruners(diverging, 3)
    assert compared["kl"]["tokens"].mean() < compared["nll"]["tokens"].mean()
    assert compared["both"]["tokens"].mean() < compared["nll"]["tokens"].mean()
    assert not compared["nll"]["lost"].any()


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_surrogate_learns_from_either_measure(diverging: Truth, surrogate: str) -> None:
    """Regret never rises; the same seed is the same search, and better than none."""
    regret = divergence_search(surrogate, diverging, 0)
    assert regret.tolist() == divergence_search(surrogate, diverging, 0).tolist()
    assert all(np.diff(regret) <= 0)
    assert regret[-1] < 0.5 * regret[0]


def test_who_knows_the_covariances_finds_the_best_sooner_than_chance(made: Truth) -> None:
    """Within six full trials of sixty settings; no setting is completed twice."""
    where = field(made, 0)
    ended = search(where, fitted_covariances(made), 0)
    assert len({trial.row for trial in ended}) == len(ended)
    assert regret_curve(ended, where, np.array([6.0]))[0] < np.quantile(where.regret, 0.05)


def test_intervals_of_this_text_are_honest(made: Truth) -> None:
    """Independent documents: 95 % intervals cover in about 95 %, and few equal settings are told apart."""
    found = honesty(made.texts[0], 300)
    assert 0.9 < found["coverage"] < 0.99
    assert found["equal_but_a_win"] <= found["equal_but_significant"] < 0.1


def test_a_win_on_tuning_text_is_held_against_what_is_true(made: Truth) -> None:
    """Settings that are all equal are seldom called better, and hardly ever confirmed; halves share no document."""
    text = made.texts[0]
    level = equal(text)
    assert np.allclose(level.mean_nll, level.mean_nll[0])
    found = studies(level, 60, 24, redrawn)
    assert all(abs(study.true) < 1e-6 for study in found)
    assert sum(study.confirmed for study in found) <= sum(study.called for study in found) < 20
    assert all(study.called and study.true < -1 for study in studies(text, 5, 24, redrawn))
    first, second = halves(text, np.random.default_rng(0))
    assert not set(first[1]) & set(second[1])
    assert len(first[0]) + len(second[0]) == SEQUENCES


def test_studies_too_short_for_shares_are_said_to_be_in_one_line() -> None:
    """No mean of nothing."""
    assert importance_truth.summary([], 3, 12) == (
        "none of 3 studies has shares: 12 trials are too few; give more --trials"
    )
    assert importance_truth.summary([(0.1, True, 0.5, False)], 3, 12).startswith("1 studies, error 0.100, leader right")
