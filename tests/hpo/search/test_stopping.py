"""A study stops early when it is told to and nothing better is to be expected, and not before."""

from dataclasses import replace
from pathlib import Path

import pytest

from hpo.search.stopping import Stopping, noise_of, paired_noise, reason_to_stop, without_improvement
from hpo.search.twins import unknown
from hpo.space.space import Space, make_space
from hpo.study.record import StudyRecord, TrialRecord
from hpo.study.scores import Scores
from objectives.errors import InputError
from quant.setting import Setting
from storage.results import ResultStore
from tests.hpo.made_studies import CONTRACT, TEXT, Maker, study_of, trial

SPACE = make_space(Setting(), {"group_size": 64, "n_grid": 20, "n_calib": 16})
SIZES = make_space(Setting(), {"group_size": "32,64"})
PATIENT = Stopping(patience=3)


def ended(*perplexities: float | None, sizes: tuple[int, ...] = (64,)) -> list[TrialRecord]:
    """Trials of those perplexities; None is a pruned one."""
    return [
        trial(
            number,
            SIZES,
            Setting(beta=number / 50, group_size=sizes[number % len(sizes)]),
            value,
            state="PRUNED" if value is None else "COMPLETE",
        )
        for number, value in enumerate(perplexities)
    ]


def bowl(setting: Setting) -> float:
    """Mean NLL, least at beta 0.3."""
    return 3.5 + 0.4 * (setting.beta - 0.3) ** 2 if setting.method == "gwh-praq-v2" else 3.9


def searched(store: ResultStore, trials: int, space: Space = SPACE) -> StudyRecord:
    """A study of random settings."""
    maker = Maker(store, space, truth=bowl)
    return study_of(maker, [maker.complete(number, maker.draw()) for number in range(trials)]).record


def has_converged(space: Space, record: StudyRecord, store: ResultStore) -> bool:
    """Whether `--until converged` ends the study."""
    return reason_to_stop(Stopping(converged=True), space, record, noise_of(record, Scores(store)), 0) is not None


def test_trials_that_improve_on_nothing_are_counted() -> None:
    """Also pruned ones; any better one of its bits starts the count anew, and trials under way count nothing."""
    assert without_improvement(ended(30.0, 29.0, 29.5, None, 29.1)) == 3
    assert without_improvement(ended(30.0, 31.0, 29.9)) == 0
    assert without_improvement([]) == 0
    trials = ended(30.0, 31.0, 29.9)
    assert without_improvement([*trials[:2], replace(trials[2], state="RUNNING", perplexity=None)]) == 1


def test_a_better_trial_of_other_bits_is_an_improvement() -> None:
    """Each size class has a best of its own: here every trial but the last improves on one."""
    assert without_improvement(ended(30.0, 40.0, 29.0, 39.0, 28.0, 38.0, 28.5, sizes=(32, 64))) == 1


@pytest.mark.parametrize(("trials", "stops"), [((30.0, 31.0, None), False), ((30.0, 31.0, None, 30.5), True)])
def test_patience_ends_after_so_many_trials(trials: tuple[float | None, ...], stops: bool, tmp_path: Path) -> None:
    """And says which flag did it."""
    record = StudyRecord(name="s", contract=CONTRACT, references=(), trials=tuple(ended(*trials)))
    reason = reason_to_stop(PATIENT, SIZES, record, unknown, 0)
    assert (reason is not None) == stops
    assert not stops or "--patience" in str(reason)


def test_nothing_stops_a_study_that_was_not_told_to(tmp_path: Path) -> None:
    """Whatever it found."""
    store = ResultStore(tmp_path)
    assert reason_to_stop(Stopping(), SPACE, searched(store, 40), unknown, 0) is None


def test_a_study_converges_once_it_knows_its_optimum(tmp_path: Path) -> None:
    """Not in its start-up, and not before it looked around; then for good."""
    store = ResultStore(tmp_path)
    found = [has_converged(SPACE, searched(store, trials), store) for trials in (4, 9, 60)]
    assert found == [False, False, True]
    record = searched(store, 60)
    reason = reason_to_stop(Stopping(converged=True), SPACE, record, noise_of(record, Scores(store)), 0)
    assert "--until converged" in str(reason)


def test_a_group_size_that_was_never_measured_keeps_a_study_going(tmp_path: Path) -> None:
    """However well the other one is known."""
    store = ResultStore(tmp_path)
    maker = Maker(store, SIZES, truth=bowl)
    trials = [maker.complete(number, replace(maker.draw(), group_size=32)) for number in range(60)]
    assert not has_converged(SIZES, study_of(maker, trials).record, store)


def test_the_noise_is_that_of_differences_not_of_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far below the spread of the text; none is known of fewer than two trials."""
    store = ResultStore(tmp_path)
    record = searched(store, 12)
    size_class = record.complete[0].size_class
    assert size_class is not None
    assert 0 < paired_noise(record, size_class, Scores(store)) < 0.05
    alone = replace(searched(store, 1), references=())
    assert paired_noise(alone, size_class, Scores(store)) == 0
    monkeypatch.setattr("tests.hpo.made_studies.TEXT", replace(TEXT, clusters=(0,) * len(TEXT)))
    one_document = ResultStore(tmp_path / "one document")
    assert paired_noise(searched(one_document, 12), size_class, Scores(one_document)) == 0


def test_one_trial_is_compared_with_the_references(tmp_path: Path) -> None:
    """A study that gave all others up knows its noise, too."""
    store = ResultStore(tmp_path)
    maker = Maker(store, SPACE, truth=bowl)
    setting = Setting(method="gw-awq", group_size=64, n_calib=16)
    record = replace(study_of(maker, [maker.complete(0, maker.draw())]).record, references=(maker.reference(setting),))
    size_class = record.complete[0].size_class
    assert size_class is not None
    assert paired_noise(record, size_class, Scores(store)) > 0


def test_damaged_values_are_left_out(tmp_path: Path) -> None:
    """Asking goes on; the other trials know the noise."""
    store = ResultStore(tmp_path)
    record = searched(store, 60)
    for damaged in record.complete[1:3]:
        (tmp_path / f"{damaged.result}.safetensors").write_bytes(b"no result")
    assert has_converged(SPACE, record, store)


def test_a_space_that_is_used_up_has_not_converged(tmp_path: Path) -> None:
    """Who asks is told that there is no other setting."""
    store = ResultStore(tmp_path)
    space = make_space(
        Setting(method="gw-awq", n_grid=20), {"n_grid": 20, "n_calib": "16,32,64,128", "group_size": "32,64,128"}
    )
    maker = Maker(store, space)
    trials = [maker.complete(number, setting) for number, setting in enumerate(space.every())]
    assert len(trials) == 12
    assert not has_converged(space, study_of(maker, trials).record, store)


def test_patience_below_one_is_refused() -> None:
    """One line."""
    with pytest.raises(InputError, match="--patience 0 is not at least 1"):
        Stopping(patience=0)
