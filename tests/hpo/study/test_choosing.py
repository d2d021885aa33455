"""One trial of a study, picked by a person: which one is meant, what is said of it, and what it may be applied to."""

from dataclasses import replace
from pathlib import Path

import pytest

from hpo.space.space import make_space
from hpo.study.choosing import chosen_trial, require_same_bench, study_flags
from hpo.study.contract import CalibrationContract
from hpo.study.record import StudyRecord
from objectives.errors import InputError
from quant.setting import Setting
from tests.hpo import made_studies
from tests.hpo.made_studies import pruned, trial
from tests.objectives import tiny

SPACE = make_space(Setting(), {})
TUNING = replace(made_studies.CONTRACT.tuning, source="c4", sequences=64, protocol="packed", seq_len=512)
CONTRACT = replace(
    made_studies.CONTRACT,
    model=replace(made_studies.CONTRACT.model, name="org/name", commit="abc", fingerprint="weights"),
    calibration=replace(made_studies.CONTRACT.calibration, source="wikitext2", sequences=8, fingerprint="text"),
    tuning=TUNING,
    seed=3,
)
SETTINGS = [Setting(beta=beta) for beta in (0.1, 0.2, 0.3, 0.4, 0.5)]
TRIALS = (
    trial(0, SPACE, SETTINGS[0], 9.0),
    trial(1, SPACE, SETTINGS[1], 8.0),
    pruned(2, SPACE, SETTINGS[2], estimate=8.5),
    trial(3, SPACE, SETTINGS[3], None, state="FAIL", outcome="out-of-memory", reason="out of memory"),
    trial(4, SPACE, SETTINGS[4], None, state="RUNNING", outcome=None),
    replace(trial(5, SPACE, SETTINGS[0], None, state="WAITING"), setting=None),
)
RECORD = StudyRecord(name="mine", contract=CONTRACT, references=(), trials=TRIALS)


@pytest.mark.parametrize(("which", "number"), [("best", 1), ("0", 0), ("1", 1)])
def test_a_completed_trial_is_chosen_without_a_word(which: str, number: int) -> None:
    """The best by name, any by number."""
    chosen, notes = chosen_trial(RECORD, which)
    assert (chosen.number, notes) == (number, [])


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("2", "trial 2 was pruned before all text was read; its perplexity is not known (estimated: 8.500)"),
        ("3", "trial 3 failed (out of memory), so its setting may fail again"),
        ("4", "trial 4 is not measured yet (running); its perplexity is not known"),
    ],
)
def test_a_trial_without_a_perplexity_may_be_chosen_by_number_and_is_said_to_have_none(which: str, said: str) -> None:
    """Pruned, failed or running: a setting is a setting."""
    chosen, notes = chosen_trial(RECORD, which)
    assert chosen.setting == SETTINGS[int(which)]
    assert notes == [said]


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("17", "study 'mine' has no trial '17'; give recommended, best or a number (0 to 5)"),
        ("-1", "has no trial '-1'"),
        ("worst", "has no trial 'worst'"),
        ("5", "trial 5 of study 'mine' has no setting"),
    ],
)
def test_a_trial_that_is_not_there_is_refused_with_those_that_are(which: str, said: str) -> None:
    """Unknown numbers, words, and trials that have not begun."""
    with pytest.raises(InputError) as caught:
        chosen_trial(RECORD, which)
    assert said in str(caught.value)


def test_the_best_of_a_study_without_a_completed_trial_is_refused() -> None:
    """A pruned trial is never the best by itself."""
    with pytest.raises(InputError, match="has no completed trial yet"):
        chosen_trial(replace(RECORD, trials=TRIALS[2:]), "best")


def test_the_flags_of_a_study_are_what_it_was_begun_with() -> None:
    """Everything that its model and its text depend on; a second confirmation text only where there is one."""
    flags = study_flags(CONTRACT)
    assert flags == {
        "model": "org/name",
        "revision": "abc",
        "dtype": "bfloat16",
        "calib_data": "wikitext2",
        "route_all": False,
        "eval_data": "c4",
        "confirm_data": None,
        "eval_samples": 64,
        "protocol": "packed",
        # What packed text began with before that could be said.
        "bos": "never",
        "seq_len": 512,
        "seed": 3,
    }
    second = replace(TUNING, source="x.txt")
    assert study_flags(replace(CONTRACT, second_confirmation=second))["confirm_data"] == "x.txt"


def test_other_weights_or_other_text_are_refused_with_the_flags_that_help(tmp_path: Path) -> None:
    """Each is named alone, both together in one line; the study's own are accepted."""
    bench = tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path)
    own = {"model": bench.model.fingerprint, "calibration": bench.calibration.text.fingerprint()}

    def record(*same: str) -> StudyRecord:
        parts = {part: replace(getattr(CONTRACT, part), fingerprint=own[part]) for part in same}
        return replace(RECORD, contract=replace(CONTRACT, **parts))

    require_same_bench(record("model", "calibration"), bench)
    with pytest.raises(InputError) as caught:
        require_same_bench(record("calibration"), bench)
    assert "the model that was loaded is not the study's: give --model org/name --revision abc" in str(caught.value)
    assert "--calib-data" not in str(caught.value)
    with pytest.raises(InputError) as caught:
        require_same_bench(record(), bench)
    assert "--dtype bfloat16; the calibration text that was loaded" in str(caught.value)
    given = "--calib-data wikitext2 --eval-data c4 --eval-samples 64 --protocol packed --bos never --seq-len 512"
    assert f"give {given} --seed 3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_statistics_of_other_tokens_are_refused(tmp_path: Path) -> None:
    """What was calibrated with `--route-all` is calibrated so again, and what was not is not."""
    model = tiny.model(tiny.MIXTURES["mixtral"]())
    for route_all, remedy in ((False, "give --route-all"), (True, "leave out --route-all")):
        bench = tiny.bench(model, tmp_path, route_all=route_all)
        calibration = CalibrationContract(
            source="random-1", sequences=8, fingerprint=bench.calibration.text.fingerprint(), route_all=not route_all
        )
        contract = replace(
            CONTRACT, model=replace(CONTRACT.model, fingerprint=model.fingerprint), calibration=calibration
        )
        with pytest.raises(InputError, match=remedy):
            require_same_bench(replace(RECORD, contract=contract), bench)
        same = replace(contract, calibration=replace(calibration, route_all=route_all))
        require_same_bench(replace(RECORD, contract=same), bench)
