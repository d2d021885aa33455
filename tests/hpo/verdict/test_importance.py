"""Importances name what drives the value and how sure that is, and say so when there is too little to tell."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from hpo.report.document import printed_importances
from hpo.space.space import make_space
from hpo.study.record import StudyRecord, TrialRecord
from hpo.verdict import bootstrap, importance
from hpo.verdict.bootstrap import Share, evaluate
from hpo.verdict.importance import FEW_TRIALS, FEWEST_TRIALS, Importances
from quant.setting import Setting
from storage.results import ResultStore
from storage.typed_json import encode
from tests.hpo.made_studies import Maker, Truth, study_of


def importances(record: StudyRecord) -> Importances:
    return importance.importances(record.contract.space, record.trials)


def made(store: Path, truth: Truth, trials: int, sizes: str = "64") -> tuple[StudyRecord, Importances]:
    space = make_space(Setting(), {"group_size": sizes})
    maker = Maker(ResultStore(store), space, truth=truth)
    record = study_of(maker, [maker.complete(number, maker.draw()) for number in range(trials)]).record
    return record, importances(record)


def with_half_width(trial: TrialRecord, half_width: float) -> TrialRecord:
    """A pruned trial whose estimate's interval reaches about so many nats to either side."""
    assert trial.estimate is not None
    return replace(trial, estimate=replace(trial.estimate, standard_error=half_width / 2, degrees=50.0))


def by_beta(setting: Setting) -> float:
    return 3.5 + (0.4 * (setting.beta - 0.3) ** 2 if setting.method == "gwh-praq-v2" else 0.2)


def by_grid(setting: Setting) -> float:
    return 3 + 0.01 * setting.n_grid


def by_two(setting: Setting) -> float:
    return 3.5 + (0.3 * setting.beta + 0.3 * setting.n_grid / 35 if setting.method == "gwh-praq-v2" else 0.2)


def by_half_of_beta(setting: Setting) -> float:
    return 3.5 + 0.3 * (setting.beta > 0.5) + 0.002 * setting.n_grid


def width(share: Share) -> float:
    return share.high - share.low


def without_estimates(record: StudyRecord) -> StudyRecord:
    return replace(record, trials=tuple(replace(trial, estimate=None) for trial in record.trials))


def by_bits(setting: Setting) -> float:
    return by_beta(setting) / 2 + 0.1 * math.log2(setting.group_size)


@pytest.fixture
def many_resamples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As many as users have, for tests that look at intervals."""
    evaluate.cache_clear()
    monkeypatch.setattr(bootstrap, "RESAMPLES", 100)
    yield
    evaluate.cache_clear()


def test_what_drives_the_value_is_ranked_first(tmp_path: Path) -> None:
    """Beta alone decides here: either evaluator gives it more than everything that does nothing; shares add up to 1."""
    _, computed = made(tmp_path, by_beta, 40)
    for evaluator in ("ped_anova", "fanova", "mean"):
        shares = {name: share.value for name, share in getattr(computed.overall, evaluator).items()}
        assert set(shares) == {"beta", "tau", "n_grid", "n_calib"}
        assert shares["beta"] > 2 * max(share for name, share in shares.items() if name != "beta"), evaluator
        assert sum(shares.values()) == pytest.approx(1)
    assert computed.overall.reason is None
    assert computed.equal_size is None


def test_another_driver_gives_another_ranking(tmp_path: Path) -> None:
    """The first place is not beta's by birth."""
    _, computed = made(tmp_path, by_grid, 40)
    assert next(iter(computed.overall.mean)) == "n_grid"
    values = [share.value for share in computed.overall.mean.values()]
    assert values == sorted(values, reverse=True)


def test_group_size_is_told_apart_from_the_rest(tmp_path: Path) -> None:
    """It dominates over all trials; at equal group size it is left out, and beta leads."""
    record, computed = made(tmp_path, by_bits, 60, "32,64")
    assert next(iter(computed.overall.mean)) == "group_size"
    assert computed.equal_size is not None
    assert next(iter(computed.equal_size.mean)) == "beta"
    assert "group_size" not in computed.equal_size.ped_anova
    sizes = [trial.group_size for trial in record.complete]
    most = max((32, 64), key=sizes.count)
    assert (computed.equal_size.scope, computed.equal_size.trials) == (f"group size {most}", sizes.count(most))


def test_equal_group_size_is_the_most_frequent_one(tmp_path: Path) -> None:
    """Not the best, and not the first."""
    space = make_space(Setting(), {"group_size": "32,64"})
    maker = Maker(ResultStore(tmp_path), space)
    sizes = [32] * 3 + [64] * 12
    trials = [maker.complete(number, replace(maker.draw(), group_size=size)) for number, size in enumerate(sizes)]
    computed = importances(study_of(maker, trials).record).equal_size
    assert computed is not None
    assert (computed.scope, computed.trials, computed.reason) == ("group size 64", 12, None)


@pytest.mark.parametrize("trials", [0, 1, FEWEST_TRIALS - 1])
def test_too_few_trials_give_a_sentence_and_no_numbers(trials: int, tmp_path: Path) -> None:
    """Chance is not shown as importance."""
    _, computed = made(tmp_path, by_beta, trials)
    assert computed.overall.reason == (
        f"All trials: {trials} trials with a value or an estimate are too few for importances; it takes "
        f"{FEWEST_TRIALS}."
    )
    assert not computed.overall.ped_anova
    assert not computed.overall.fanova
    assert not computed.overall.mean
    assert computed.overall.warning is None


def test_enough_trials_in_all_may_be_too_few_of_one_group_size(tmp_path: Path) -> None:
    """Each scope is judged by its own trials."""
    _, computed = made(tmp_path, by_bits, FEWEST_TRIALS, "32,64")
    assert computed.overall.reason is None
    assert computed.equal_size is not None
    assert "too few" in str(computed.equal_size.reason)


def test_pruned_trials_count_by_their_estimates(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A bad half that is always pruned shows that beta matters; by the complete trials alone it would not."""
    space = make_space(Setting(), {"group_size": 64})
    maker = Maker(ResultStore(tmp_path), space, truth=by_half_of_beta)
    drawn = [maker.draw() for _ in range(60)]
    trials = [
        (maker.pruned if setting.beta > 0.5 else maker.complete)(number, setting)
        for number, setting in enumerate(drawn)
    ]
    record = study_of(maker, trials).record
    computed = importances(record).overall
    assert (computed.complete, computed.pruned, computed.trials) == (len(record.complete), len(record.pruned), 60)
    assert computed.counted == f"60 trials ({computed.pruned} of them pruned, by their estimates)"
    assert next(iter(computed.fanova)) == "beta"
    assert computed.fanova["beta"].value > 0.8
    request.getfixturevalue("many_resamples")
    without = importances(without_estimates(record)).overall
    assert (without.complete, without.pruned) == (len(record.complete), 0)
    assert without.counted == f"{without.complete} complete trials"
    assert without.fanova["beta"].high < 0.3


def test_trials_without_any_value_do_not_count(tmp_path: Path) -> None:
    """Failed ones, and pruned ones that had nothing to be compared with."""
    space = make_space(Setting(), {"group_size": 64})
    maker = Maker(ResultStore(tmp_path), space)
    trials = [maker.complete(number, maker.draw()) for number in range(FEWEST_TRIALS - 1)]
    trials.append(replace(maker.pruned(len(trials), maker.draw()), estimate=None))
    trials.append(maker.failed(len(trials), maker.draw()))
    computed = importances(study_of(maker, trials).record).overall
    assert (computed.complete, computed.pruned) == (FEWEST_TRIALS - 1, 0)
    assert "too few" in str(computed.reason)


def test_the_usual_group_size_is_that_of_complete_and_pruned_trials(tmp_path: Path) -> None:
    """Pruning most trials of one size does not move the comparison to another."""
    space = make_space(Setting(), {"group_size": "32,64"})
    maker = Maker(ResultStore(tmp_path), space)
    trials = [maker.complete(number, replace(maker.draw(), group_size=32)) for number in range(5)]
    trials += [
        with_half_width(maker.pruned(number, replace(maker.draw(), group_size=64)), 1e-6) for number in range(5, 17)
    ]
    computed = importances(study_of(maker, trials).record).equal_size
    assert computed is not None
    assert (computed.scope, computed.complete, computed.pruned) == ("group size 64", 0, 12)


@pytest.mark.slow
def test_intervals_cover_what_many_trials_say_and_shrink(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """By 30 trials it is known less well than by 120, and both times about where 250 see it; by either evaluator."""
    many = made(tmp_path, by_two, 250)[1].overall
    request.getfixturevalue("many_resamples")
    few, more = (made(tmp_path, by_two, trials)[1].overall for trials in (30, 120))
    for evaluator in ("ped_anova", "fanova", "mean"):
        truth, wide, narrow = (getattr(shares, evaluator) for shares in (many, few, more))
        assert wide["beta"].low < truth["beta"].value < wide["beta"].high, evaluator
        assert narrow["beta"].low < truth["beta"].value < narrow["beta"].high, evaluator
        assert sum(map(width, narrow.values())) < 0.8 * sum(map(width, wide.values())), evaluator


@pytest.mark.usefixtures("many_resamples")
def test_two_that_matter_equally_are_not_told_apart_by_few_trials(tmp_path: Path) -> None:
    """The warning names both, and how few trials there are."""
    _, computed = made(tmp_path, by_two, 14)
    first, second, *_ = computed.overall.mean
    assert {first, second} == {"beta", "n_grid"}
    assert computed.overall.warning == (
        f"The intervals of {first} and {second} overlap: 14 trials are too few to say which matters more."
    )


@pytest.mark.usefixtures("many_resamples")
def test_one_that_dominates_many_trials_needs_no_warning(tmp_path: Path) -> None:
    """Its interval lies above all others."""
    _, computed = made(tmp_path, by_grid, 60)
    lead, *others = computed.overall.mean.values()
    assert lead.low > max(share.high for share in others)
    assert computed.overall.warning is None


def test_few_trials_are_named_however_narrow_their_intervals(tmp_path: Path) -> None:
    """Resampling a dozen trials cannot show what none of them tried."""
    _, computed = made(tmp_path, by_grid, 60)
    few = replace(computed.overall, complete=FEW_TRIALS - 1)
    assert few.warning == f"Of {FEW_TRIALS - 1} trials only the first place, n_grid, is worth believing."


def test_draws_with_nothing_to_explain_are_drawn_again(tmp_path: Path) -> None:
    """With a single trial that differs a third of all draws leave it out."""
    record, _ = made(tmp_path, by_beta, FEWEST_TRIALS)
    flat = [replace(trial, perplexity=30.0) for trial in record.trials]
    computed = importances(replace(record, trials=(replace(flat[0], perplexity=60.0), *flat[1:])))
    assert computed.overall.reason is None
    assert sum(share.value for share in computed.overall.fanova.values()) == pytest.approx(1)


def test_importances_as_json(tmp_path: Path) -> None:
    """Plain numbers by evaluator and hyperparameter as ever, and beside them intervals, counts and the warning."""
    _, computed = made(tmp_path, by_two, 14)
    entry = json.loads(json.dumps(encode(printed_importances(computed))))["overall"]
    assert (entry["scope"], entry["trials"], entry["complete"], entry["pruned"]) == ("all trials", 14, 14, 0)
    assert (entry["warning"], entry["reason"]) == (computed.overall.warning, None)
    assert set(entry["intervals"]) == {"ped_anova", "fanova", "mean"}
    for evaluator, intervals in entry["intervals"].items():
        shares = getattr(computed.overall, evaluator)
        assert entry[evaluator] == {name: share.value for name, share in shares.items()}
        assert intervals == {name: [share.low, share.high] for name, share in shares.items()}


def test_a_constant_value_has_no_importances(tmp_path: Path) -> None:
    """Equal perplexities give a sentence instead of equal shares."""
    record, _ = made(tmp_path, by_beta, FEWEST_TRIALS)
    flat = replace(record, trials=tuple(replace(trial, perplexity=30.0) for trial in record.trials))
    computed = importances(flat).overall
    assert "same value" in str(computed.reason)
    assert not computed.mean


def test_trials_without_a_finite_value_are_left_out(tmp_path: Path) -> None:
    """An overflow is not a perplexity."""
    record, before = made(tmp_path, by_beta, 2 * FEWEST_TRIALS)
    broken = replace(record.trials[0], perplexity=math.inf)
    computed = importances(replace(record, trials=(broken, *record.trials[1:])))
    assert computed.overall.trials == before.overall.trials - 1


def test_one_hyperparameter_alone_has_nothing_to_compare(tmp_path: Path) -> None:
    """A share of 100 % by construction says nothing."""
    fixed = {"group_size": 64, "tau": 2, "n_grid": 20, "n_calib": 128}
    space = make_space(Setting(), fixed)
    maker = Maker(ResultStore(tmp_path), space)
    record = study_of(maker, [maker.complete(number, maker.draw()) for number in range(20)]).record
    assert "only beta varies" in str(importances(record).overall.reason)


def test_importances_are_repeatable_and_leave_no_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The same record gives the same numbers; Optuna says nothing and is as talkative as before."""
    before = optuna.logging.get_verbosity()
    record, computed = made(tmp_path, by_beta, 20)
    evaluate.cache_clear()
    assert importances(record) == computed
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_estimates_that_err_more_than_trials_differ_are_left_out(tmp_path: Path) -> None:
    """They are noise; the same trials known exactly count."""
    space = make_space(Setting(), {"group_size": 64})
    maker = Maker(ResultStore(tmp_path), space, truth=by_beta)
    complete = [maker.complete(number, maker.draw()) for number in range(12)]
    pruned = [maker.pruned(number, maker.draw()) for number in range(12, 20)]
    for half_width, count in ((0.7, 0), (1e-6, 8)):
        trials = [*complete, *(with_half_width(trial, half_width) for trial in pruned)]
        computed = importances(study_of(maker, trials).record).overall
        assert (computed.complete, computed.pruned) == (12, count)
