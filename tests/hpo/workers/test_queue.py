"""Between WAITING and RUNNING: every trial has one owner, and what a dead process left is found."""

from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from hpo.space.space import make_space
from hpo.study.attributes import BEAT, OWNER, Beat
from hpo.study.owner import Owner
from hpo.study.record import read_study
from hpo.workers.preparation import open_study
from hpo.workers.queue import GRACE_SECONDS, MOST_TAKEOVERS, Queue
from quant.setting import Setting
from storage.studies.opening import open_storage
from storage.typed_json import encode
from tests.hpo.made_studies import CONTRACT

SPACE = make_space(Setting(), {})


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"journal:{tmp_path}/study.log"


@pytest.fixture
def queue(url: str) -> Queue:
    storage = open_storage(url)
    study = open_study(storage, "s", CONTRACT)
    return Queue(study=study, storage=storage, space=SPACE)


def settings(count: int) -> list[Setting]:
    return [SPACE.at([(index + 0.5) / count] * 5) for index in range(count)]


def test_a_claimed_trial_has_the_queued_setting(queue: Queue) -> None:
    """Parameters, setting, origin and owner are known as soon as it runs."""
    (setting,) = settings(1)
    queue.add(setting, "preset balanced")
    trial = queue.claim()
    assert trial is not None
    record = read_study(queue.study).trials[0]
    assert (record.state, record.setting, record.name) == ("RUNNING", setting, "balanced")
    assert SPACE.setting(record.params) == setting
    assert record.owner == Owner.this()
    assert queue.claim() is None


def test_a_trial_that_is_handed_back_is_claimed_again_under_its_number(queue: Queue) -> None:
    """It waits, with its parameters, for whoever comes next."""
    queue.add(settings(1)[0], "gp")
    first = queue.claim()
    assert first is not None
    first.report(100.0, 8)
    assert queue.hand_back() == [0]
    again = queue.claim()
    assert again is not None
    assert (again.number, again.params) == (first.number, first.params)
    assert read_study(queue.study).trials[0].running == {8: 100.0}


def test_a_trial_that_has_ended_is_not_handed_back(queue: Queue) -> None:
    """Its result stays."""
    queue.add(settings(1)[0], "gp")
    trial = queue.claim()
    assert trial is not None
    queue.study.tell(trial, 3.0)
    assert queue.hand_back() == []
    assert read_study(queue.study).trials[0].perplexity == 3.0


def test_what_another_worker_is_at_is_not_handed_back(queue: Queue) -> None:
    """Two workers of one process, as tasks of a cluster are, keep apart by their names."""
    queue.add(settings(1)[0], "gp")
    other = replace(queue, owner=Owner.this(name="other"))
    trial = other.claim()
    assert trial is not None
    assert queue.hand_back() == []
    assert other.owns(trial)
    assert not queue.owns(trial)


def test_what_a_dead_process_left_is_queued_again_and_what_lives_is_not(queue: Queue) -> None:
    """Dead are: a number that no process has, and a number that another process has by now; not another machine's."""
    parent = psutil.Process().ppid()
    this = Owner.this()
    owners = [
        replace(this, pid=2**22 + 1, started=1.0),
        replace(this, pid=parent, started=1.0),
        replace(this, name="alive"),
        replace(this, machine="another", pid=2**22 + 1, started=1.0),
    ]
    for setting in settings(len(owners)):
        queue.add(setting, "gp")
    for owner in owners:
        trial = queue.claim()
        assert trial is not None
        trial.set_user_attr(OWNER, encode(owner))
    taken = queue.take_back()
    assert [number for number, _ in taken] == [0, 1]
    assert all("died; it is queued again" in became for _, became in taken)
    assert [trial.state for trial in read_study(queue.study).trials] == ["WAITING", "WAITING", "RUNNING", "RUNNING"]
    assert queue.take_back() == []


def test_a_claim_that_was_interrupted_is_taken_back_by_its_own_worker(queue: Queue) -> None:
    """A worker that asks is at nothing: what is in its name was claimed by a step that failed half way."""
    queue.add(settings(1)[0], "gp")
    assert queue.claim() is not None
    assert queue.take_back() == [(0, "its claim was interrupted; it is queued again")]


def test_a_worker_elsewhere_is_dead_when_its_heartbeats_stop(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """By this process's own clock, from the last news on; a heartbeat in between is news."""
    clock = [0.0]
    monkeypatch.setattr("hpo.workers.queue.monotonic", lambda: clock[0])
    queue.add(settings(1)[0], "gp")
    trial = queue.claim()
    assert trial is not None
    trial.set_user_attr(OWNER, encode(replace(queue.owner, machine="another")))
    assert queue.take_back() == []
    clock[0] += GRACE_SECONDS - 1
    trial.set_user_attr(BEAT, encode(Beat(count=1, phase="scoring", done=1, total=2, at="2026-01-01T00:00:00+00:00")))
    assert queue.take_back() == []
    clock[0] += GRACE_SECONDS - 1
    assert queue.take_back() == []
    clock[0] += 2
    ((number, became),) = queue.take_back()
    assert number == 0
    assert "gave no sign of life for 61 s; it is queued again" in became


def test_a_trial_whose_workers_die_again_and_again_fails(queue: Queue) -> None:
    """Twice it is tried again; then it is taken to be what kills them, and says so."""
    queue.add(settings(1)[0], "gp")
    for _ in range(MOST_TAKEOVERS + 1):
        trial = queue.claim()
        assert trial is not None
        trial.set_user_attr(OWNER, encode(replace(queue.owner, pid=2**22 + 1)))
        queue.take_back()
    (record,) = read_study(queue.study).trials
    assert (record.state, record.outcome, record.takeovers) == ("FAIL", "worker died", 3)
    assert "and 2 workers before it" in str(record.reason)
