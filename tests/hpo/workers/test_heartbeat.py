"""Signs of life: they come while a trial runs, stop when it ends, and end one that hangs."""

from pathlib import Path
from time import sleep

import optuna
import pytest

from hpo.study.attributes import Beat
from hpo.study.record import read_study
from hpo.workers import heartbeat as module
from hpo.workers.heartbeat import Heartbeat
from hpo.workers.preparation import open_study
from storage.studies.opening import open_storage
from tests.hpo.made_studies import CONTRACT
from tests.processes import wait_until


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return open_study(open_storage(f"journal:{tmp_path}/study.log"), "s", CONTRACT)


def last(study: optuna.Study) -> Beat | None:
    """The newest sign of life."""
    return read_study(study).trials[0].beat


def count(study: optuna.Study) -> int:
    """How many signs there were."""
    sign = last(study)
    return 0 if sign is None else sign.count


def test_signs_say_phase_and_progress_and_go_on_without_progress(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new phase is told at once; the count grows also while the main thread is busy."""
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    trial = study.ask()
    with Heartbeat(study._storage, trial._trial_id) as beat:
        beat.note("quantizing gw-awq", 3, 30)
        wait_until(lambda: (sign := last(study)) is not None and sign.phase == "quantizing", "the phase")
        first = last(study)
        assert first is not None
        assert (first.done, first.total) == (3, 30)
        wait_until(lambda: count(study) > first.count + 2, "more signs")
    counted = count(study)
    sleep(0.2)
    assert count(study) == counted


def test_a_trial_that_someone_ended_gets_no_signs(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread ends by itself; nothing is raised anywhere."""
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    trial = study.ask()
    with Heartbeat(study._storage, trial._trial_id) as beat:
        study.tell(trial, 1.0)
        wait_until(lambda: not beat._thread.is_alive(), "the end of the thread")
    assert read_study(study).trials[0].state == "COMPLETE"


def test_a_trial_that_hangs_fails_and_its_worker_is_told_to_end(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress keeps it alive for longer than the timeout; silence ends it."""
    clock, ended = [0.0], list[str]()
    monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    trial = study.ask()
    with Heartbeat(study._storage, trial._trial_id, 100.0, ended.append) as beat:
        for step in range(8):
            clock[0] += 90.0
            beat.note("scoring", step, 64)
        counted = count(study)
        wait_until(lambda: count(study) > counted + 1, "another sign")
        assert not ended
        clock[0] += 101.0
        wait_until(lambda: ended, "the timeout")
    record = read_study(study).trials[0]
    assert (record.state, record.outcome) == ("FAIL", "timeout")
    assert "while scoring (7/64)" in str(record.reason)
    assert ended == [record.reason]
