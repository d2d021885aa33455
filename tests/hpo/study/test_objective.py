"""What a study minimises: perplexity or divergence, and everything that follows from which of the two."""

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from hpo.deploy.reproduce import repeat_command
from hpo.search.acquisition import nats_of
from hpo.search.incumbent import Incumbent, estimate, make_incumbent
from hpo.search.pruners.paired import is_hopeless
from hpo.search.pruners.pruner import Rule
from hpo.search.pruners.registry import PRUNERS
from hpo.search.stopping import without_improvement
from hpo.space.space import make_space
from hpo.study.confirmation import ConfirmedComparison, Interval
from hpo.study.contract import require_same, stored_contract
from hpo.study.estimate import Estimate
from hpo.study.objective import KL, OBJECTIVES, PERPLEXITY
from hpo.study.options import SearchOptions
from hpo.study.record import read_study
from hpo.study.status import summary
from hpo.verdict.importance import importances
from hpo.verdict.ranking import frontier_text, is_meaningful
from hpo.verdict.recommendation import judge
from hpo.verdict.words import value_text
from objectives.errors import InputError
from objectives.scoring import Score
from quant.setting import Setting
from storage.errors import StoredValueError
from storage.results import ResultStore
from storage.studies.opening import open_storage
from storage.typed_json import encode
from tests.hpo.made_studies import CONTRACT, Maker, Study, judged_by_kl, mixed_study, study_of

BY_KL = replace(CONTRACT, objective="kl")


class Contrary(Maker):
    """Measurements whose divergence is least where beta is largest, which the likelihood of labels does not like."""

    def _score(self, setting: Setting | None) -> Score:
        score = super()._score(setting)
        assert score.kl is not None
        if setting is None or setting.method != "gwh-praq-v2":
            return score
        kl = score.kl / score.kl.mean() * score.tokens.double().mean() * (0.09 - 0.05 * setting.beta)
        return replace(score, kl=kl, flips=(kl / 2).round())


@pytest.fixture
def contrary(tmp_path: Path) -> Study:
    """Two trials of equal bits: trial 0 has the better perplexity, trial 1 the smaller divergence."""
    maker = Contrary(ResultStore(tmp_path), make_space(Setting(), {"group_size": "64"}))
    settings = [Setting(group_size=64, tau=2.5, beta=beta) for beta in (0.3, 0.9)]
    return study_of(maker, [maker.complete(number, setting) for number, setting in enumerate(settings)])


def score(nll: list[float], kl: list[float]) -> Score:
    """Nats per token of sequences of ten tokens, each a document of its own."""
    nats, divergence = (10 * torch.tensor(values, dtype=torch.float64) for values in (nll, kl))
    count = len(nll)
    tokens = torch.full((count,), 10)
    return Score(
        nll=nats, tokens=tokens, clusters=torch.arange(count), kl=divergence, flips=torch.zeros(count).double()
    )


def test_an_objective_is_a_value_and_how_two_of_them_are_compared() -> None:
    """Perplexity changes by percent, divergence by nats; what is small enough is the same in nats."""
    first, second = score([3.0, 3.1, 2.9], [0.10, 0.12, 0.11]), score([3.01, 3.11, 2.91], [0.12, 0.15, 0.12])
    assert PERPLEXITY.value(first) == pytest.approx(math.exp(3.0))
    assert KL.value(first) == pytest.approx(0.11)
    assert PERPLEXITY.change(PERPLEXITY.difference(first, second)).value == pytest.approx(100 * math.expm1(-0.01))
    assert KL.change(KL.difference(first, second)).value == pytest.approx(-0.02)
    assert PERPLEXITY.change_text(PERPLEXITY.difference(first, second)).startswith("-1.00 % [")
    assert KL.change_text(KL.difference(first, second)).startswith("-0.0200 nats [")
    assert KL.against_text(KL.difference(first, second), second).endswith("per token, -15.4 % of its KL divergence")
    assert [objective.text(objective.value(first)) for objective in OBJECTIVES.values()] == [
        "perplexity 20.086",
        "KL 0.1100",
    ]
    assert math.log1p(PERPLEXITY.meaningful / 100) == pytest.approx(KL.meaningful, rel=1e-3)
    assert PERPLEXITY.indifferent / PERPLEXITY.meaningful == KL.indifferent / KL.meaningful
    assert KL.of_full(None) == 0.0
    [option] = [field for field in fields(SearchOptions) if field.name == "objective"]
    assert option.metadata["choices"] == tuple(OBJECTIVES)
    for objective in OBJECTIVES.values():
        assert objective.to_nats(objective.from_nats(0.5)) == pytest.approx(0.5)


def test_the_objective_chooses_the_winner(contrary: Study) -> None:
    """The same measurements: by perplexity one trial is best, leads and is recommended, by divergence the other."""
    for study, winner, value in ((contrary, "trial 0", "perplexity"), (judged_by_kl(contrary), "trial 1", "kl")):
        snapshot = study.snapshot
        assert study.record.best is not None
        assert study.record.best.name == winner
        assert study.record.best.value == getattr(study.record.best, value)
        assert snapshot.lead is not None
        assert snapshot.lead.best.measured.name == winner
        assert snapshot.recommendation is not None
        assert snapshot.recommendation.measured.name == winner
        assert winner in snapshot.recommendation.verdict
        assert snapshot.lead.best_reference is not None
        scores = snapshot.lead.best.score, snapshot.lead.best_reference.score
        assert snapshot.lead.against == study.record.objective.difference(*scores)


def test_sentences_say_what_was_minimised(contrary: Study) -> None:
    """Divergence is spoken of in nats per token and relative to the reference's, with perplexity beside it."""
    study = judged_by_kl(contrary)
    chosen, trial = study.snapshot.recommendation, study.record.best
    assert chosen is not None
    assert trial is not None
    assert "nats [" in chosen.verdict
    assert "% of its KL divergence on tuning text" in chosen.verdict
    assert value_text(KL, trial) in chosen.sentence()
    assert f"KL divergence {trial.kl:.4f} nats per token (perplexity {trial.perplexity:.3f})" in chosen.sentence()
    assert frontier_text(study.rankings).startswith("KL divergence at bits per weight")
    status = summary(study.record)
    assert status.objective == "KL divergence"
    assert next(iter(status.best.values())).startswith(f"{trial.kl:.4f} trial 1")
    assert "--objective kl" in repeat_command(study.record, 10)
    assert "--objective" not in repeat_command(contrary.record, 10)


def test_a_stored_study_keeps_its_objective(contrary: Study, tmp_path: Path) -> None:
    """Values that the storage has are divergences then; perplexity, divergence and flips are read beside them."""
    stored = judged_by_kl(contrary).stored(open_storage(f"journal:{tmp_path}/s.log"))
    assert [trial.value for trial in stored.trials] == [trial.kl for trial in contrary.record.trials]
    record = read_study(stored)
    assert record.objective == KL
    for read, made in zip(record.trials, contrary.record.trials, strict=True):
        assert (read.value, read.perplexity, read.kl, read.flips) == (made.kl, made.perplexity, made.kl, made.flips)


def test_a_study_from_before_is_one_of_perplexity() -> None:
    """Its contract says nothing of it; that of a worker which joins says perplexity, and both are the same."""
    stored = {name: value for name, value in encode(CONTRACT).items() if name != "objective"}
    read = stored_contract(stored, "s")
    assert read.objective == "perplexity"
    require_same(read, CONTRACT, "s")


def test_a_worker_with_another_objective_is_refused() -> None:
    """With both of them."""
    with pytest.raises(InputError, match="objective is kl, in the study perplexity"):
        require_same(CONTRACT, BY_KL, "s")
    with pytest.raises(StoredValueError, match="objective is 'loss', none of perplexity, kl"):
        stored_contract({**encode(CONTRACT), "objective": "loss"}, "s")


def test_pruning_goes_by_the_objective() -> None:
    """A trial that is far behind by divergence alone is given up under one objective and goes on under the other."""
    count = 32
    wobble = [0.02 * math.sin(3 * place) for place in range(count)]
    best = score([3.0] * count, [0.1 + part / 10 for part in wobble])
    trial = score([3.0 + part for part in wobble], [0.15 + part / 5 for part in wobble])
    look = trial.first(8)
    by_perplexity = Incumbent(number=0, score=best)
    by_kl = Incumbent(number=0, score=best, objective=KL)
    assert not is_hopeless(look, by_perplexity, Rule())
    assert is_hopeless(look, by_kl, Rule())
    guess = estimate(look, by_kl)
    assert guess.objective == KL
    assert guess.mean_nll is None
    assert guess.low <= KL.value(trial) <= guess.high
    assert estimate(look, by_perplexity).objective == PERPLEXITY
    others = [replace(trial, kl=trial.of("kl") * factor) for factor in (0.8, 1.0, 1.3)]
    made, made_by_kl = make_incumbent(0, best, others), make_incumbent(0, best, others, KL)
    assert made.prior is not None
    assert made_by_kl.prior is not None
    assert made.prior.variance != made_by_kl.prior.variance
    assert made.control is not None
    assert made_by_kl.control is not None
    assert best.mean("kl") == made.control.mean("kl") < made_by_kl.control.mean("kl")


@pytest.mark.parametrize("pruner", PRUNERS)
def test_whoever_prunes_is_told_values_of_the_objective(pruner: str) -> None:
    """Nothing that Optuna compares, or a person watches, is of the other measure."""
    look = score([3.0, 3.0], [0.1, 0.3])
    by_kl = PRUNERS[pruner].reports(look, 2, KL)
    assert by_kl[2] == pytest.approx(0.3 if pruner == "wilcoxon" else 0.2)
    assert PRUNERS[pruner].reports(look, 2, PERPLEXITY)[2] == pytest.approx(math.exp(3.0))


def test_the_search_learns_from_the_objective(contrary: Study) -> None:
    """In nats per token: the mean NLL of a perplexity, and a divergence as it is; improvements are ones of it."""
    by_kl = judged_by_kl(contrary).record.trials
    assert [nats_of(trial) for trial in by_kl] == [trial.kl for trial in by_kl]
    assert [nats_of(trial) for trial in contrary.record.trials] == [
        pytest.approx(math.log(trial.perplexity or 0)) for trial in contrary.record.trials
    ]
    assert without_improvement(contrary.record.trials) == 1
    assert without_improvement(by_kl) == 0


def test_importances_explain_the_objective(tmp_path: Path) -> None:
    """Where divergence depends on beta and the likelihood of labels on tau as well, shares are others."""
    maker = Contrary(ResultStore(tmp_path), make_space(Setting(n_grid=20, n_calib=128), {"group_size": "64"}))
    study = study_of(maker, [maker.complete(number, maker.draw()) for number in range(16)])
    space = study.record.contract.space
    by_kl = importances(space, judged_by_kl(study).record.trials).deciding
    assert next(iter(by_kl.mean)) == "beta"
    assert by_kl.mean != importances(space, study.record.trials).deciding.mean


def test_an_estimate_is_of_one_measure() -> None:
    """Of neither or both it is refused; a divergence is never estimated below 0."""
    common = {"standard_error": 0.2, "degrees": 5.0, "against": 0}
    for means in ({}, {"mean_nll": 3.0, "mean_kl": 0.1}):
        with pytest.raises(ValueError, match="either"):
            Estimate(**means, **common)  # type: ignore[arg-type]
    guess = Estimate(mean_kl=0.1, standard_error=0.2, degrees=5.0, against=0)
    assert (guess.low, guess.value) == (0.0, 0.1)
    assert guess.high > 0.5


@pytest.mark.parametrize(("nats", "judgement"), [(-0.0011, "confirmed"), (-0.0009, "not confirmed"), (0.002, "worse")])
def test_a_win_by_divergence_takes_a_thousandth_of_a_nat(nats: float, judgement: str) -> None:
    """On held-out text as on tuning text, whatever perplexity says."""
    comparison = ConfirmedComparison(
        dataset="C4",
        name="trial 1",
        against="gw-awq",
        percent=Interval(value=3.0, low=2.0, high=4.0),
        p_value=0.001,
        holm=0.001,
        kl=Interval(value=nats, low=nats - 0.0001, high=nats + 0.0001),
    )
    assert judge([comparison], KL) == judgement
    best = score([3.0] * 8, [0.1] * 8)
    moved = replace(best, kl=best.of("kl") + 10 * nats)
    assert is_meaningful(KL.difference(moved, best), KL) == (judgement == "confirmed")


def test_a_mixed_study_is_read_by_its_objective(tmp_path: Path) -> None:
    """Pruned trials, group sizes and presets included: rows are in the order of divergence at every size."""
    study = judged_by_kl(mixed_study(ResultStore(tmp_path), 16))
    for ranking in study.rankings:
        values = [KL.value(row.score) for row in ranking.rows]
        assert values == sorted(values)
        assert all(row.difference.value >= 0 for row in ranking.rows)
