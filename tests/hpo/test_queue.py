"""Between WAITING and RUNNING: every trial has one owner, and what a dead process left is found."""

import platform
from dataclasses import asdict
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from hpo.queue import Owner, Queue
from hpo.record import OWNER, read_study
from hpo.space import make_space
from quant.methods import Setting
from storage.studies import open_storage
from tests.hpo.processes import claim_all
from tests.processes import finish, start

SPACE = make_space(Setting(), {})


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def queue(url: str) -> Queue:
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name="s")
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
    assert record.owner == asdict(Owner.this())
    assert queue.claim() is None


def test_a_trial_that_is_handed_back_is_claimed_again_under_its_number(queue: Queue) -> None:
    """It waits, with its parameters, for whoever comes next."""
    queue.add(settings(1)[0], "gp")
    first = queue.claim()
    assert first is not None
    first.report(100.0, 8)
    assert queue.hand_back(first)
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
    assert not queue.hand_back(trial)
    assert read_study(queue.study).trials[0].perplexity == 3.0


def test_what_a_dead_process_left_is_queued_again_and_what_lives_is_not(queue: Queue) -> None:
    """Dead are: a number that no process has, and a number that another process has by now; not another machine's."""
    parent = psutil.Process().ppid()
    this = Owner.this()
    owners = {
        "gone": Owner(host=platform.node(), pid=2**22 + 1, started=1.0),
        "number used again": Owner(host=platform.node(), pid=parent, started=1.0),
        "alive": this,
        "elsewhere": Owner(host="another-machine", pid=2**22 + 1, started=1.0),
    }
    for setting in settings(len(owners)):
        queue.add(setting, "gp")
    for owner in owners.values():
        trial = queue.claim()
        assert trial is not None
        trial.set_user_attr(OWNER, asdict(owner))
    assert queue.take_back_orphans() == [0, 1]
    assert [one.state for one in read_study(queue.study).trials] == ["WAITING", "WAITING", "RUNNING", "RUNNING"]
    assert queue.take_back_orphans() == []


def test_processes_that_claim_at_once_get_every_trial_once(queue: Queue, url: str, tmp_path: Path) -> None:
    """Forty queued trials, four processes: forty claims, and no database that is locked."""
    for setting in settings(40):
        queue.add(setting, "gp")
    assert finish(*(start(claim_all, url, tmp_path / f"{index}.txt") for index in range(4))) == [0] * 4
    claimed = [int(line) for index in range(4) for line in (tmp_path / f"{index}.txt").read_text().split()]
    assert sorted(claimed) == list(range(40))
    assert all(trial.state == TrialState.RUNNING for trial in queue.study.trials)
