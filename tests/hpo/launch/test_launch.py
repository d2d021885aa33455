"""Launchers and the loop that watches them."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import optuna
import pytest
from optuna.trial import Trial

from hpo.launch import launch as launching
from hpo.launch import processes
from hpo.launch.following import Follower
from hpo.launch.launch import LAUNCHERS, Fleet, launch
from hpo.launch.launcher import Death, Job, Launcher, Report, Task, WorkerRequest
from hpo.study.events import Event, Finished, Notice
from hpo.study.record import read_study
from hpo.workers.preparation import open_study
from hpo.workers.worker import Budget, Settled
from objectives.errors import InputError, RunError
from storage.studies.opening import open_storage
from tests.hpo.made_studies import CONTRACT
from tests.hpo.processes import asker
from tests.processes import ForkedPool

BUDGET = Budget(trials=6)


class Threads:
    """Workers as threads of this process, a launcher that the product does not have."""

    def __init__(self, request: WorkerRequest, task: Task) -> None:
        self._request, self._task = request, task
        self._pool = ThreadPoolExecutor(4)
        self._running: dict[str, Future[Report]] = {}

    @staticmethod
    def refusal(request: WorkerRequest) -> str | None:
        """A number is needed."""
        return None if request.workers else "--backend threads needs --workers N"

    def jobs(self) -> Sequence[Job]:
        """As many as are wanted."""
        return [Job(name=f"t{index}", device="cpu") for index in range(self._request.workers or 0)]

    def start(self, job: Job) -> None:
        """In a thread."""
        self._running[job.name] = self._pool.submit(self._task, job)

    def poll(self) -> Mapping[str, Report | Death]:
        """Whatever is raised is a death."""
        done = [name for name, future in self._running.items() if future.done()]
        return {name: self._ending(self._running.pop(name)) for name in done}

    def stop(self) -> None:
        """They end by themselves."""
        self._pool.shutdown()

    def _ending(self, future: Future[Report]) -> Report | Death:
        return Death(name="thread") if future.exception() else future.result()


@dataclass(frozen=True)
class Work:
    """Asks and tells made-up values until the budget is used up."""

    url: str
    home: Path

    def __call__(self, job: Job) -> Report:
        """One worker."""
        worker = asker(self.url, self.home)
        while isinstance(trial := worker.ask(BUDGET, Settled()), Trial):
            worker.study.tell(trial, 1.0 + trial.number)
        return Report(notes=(f"{job.name} on {job.device}",))


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """Two threads."""
    doors: Mapping[str, type[Launcher]] = MappingProxyType({**LAUNCHERS, "threads": Threads})
    monkeypatch.setattr(launching, "LAUNCHERS", doors)
    monkeypatch.setattr(launching, "POLL_SECONDS", 0.01)
    return Fleet(backend="threads", workers=2)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A study with nothing in it."""
    address = f"journal:{tmp_path}/study.log"
    open_study(open_storage(address), "s", CONTRACT)
    return address


def test_a_third_launcher_runs_a_study_to_its_end(fleet: Fleet, url: str, tmp_path: Path) -> None:
    """Two workers, six trials, all of them told of; notes come back."""
    events: list[Event] = []
    follower = Follower(storage=url, study="s", budget=BUDGET, listen=events.append)
    assert sorted(launch(Work(url, tmp_path), fleet, follower)) == ["t0 on cpu", "t1 on cpu"]
    trials = read_study(optuna.load_study(storage=open_storage(url), study_name="s")).trials
    assert [trial.state for trial in trials] == ["COMPLETE"] * 6
    numbers = {event.trial.number for event in events if isinstance(event, Finished)}
    assert numbers <= {trial.number for trial in trials}


@pytest.mark.slow
def test_processes_run_a_study_to_its_end(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the usual launcher's: both report, each from a process of its own, and the budget is kept."""
    monkeypatch.setattr(launching, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(processes, "ProcessPoolExecutor", ForkedPool)
    follower = Follower(storage=url, study="s", budget=BUDGET, listen=lambda event: None)
    assert sorted(launch(Work(url, tmp_path), Fleet(workers=2), follower)) == ["w0 on cpu", "w1 on cpu"]
    record = read_study(optuna.load_study(storage=open_storage(url), study_name="s"))
    assert [trial.state for trial in record.trials] == ["COMPLETE"] * 6
    assert os.getpid() not in {trial.owner.pid for trial in record.trials if trial.owner}


def test_workers_that_keep_dying_are_given_up(fleet: Fleet, url: str) -> None:
    """Each death is told of; after ten in a row, without a trial that ends, that is all."""
    said: list[str] = []
    follower = Follower(
        storage=url,
        study="s",
        budget=BUDGET,
        listen=lambda event: said.append(event.text) if isinstance(event, Notice) else None,
    )

    def dies(job: Job) -> Report:
        raise MemoryError

    with pytest.raises(RunError, match="11 workers died while no trial ended"):
        launch(dies, fleet, follower)
    assert said.count("worker t0 (thread) died; it is started again") + said.count(
        "worker t1 (thread) died; it is started again"
    ) == len(said)


def test_an_error_of_all_workers_is_raised(fleet: Fleet, url: str) -> None:
    """Wrong input comes before what failed."""
    follower = Follower(storage=url, study="s", budget=BUDGET, listen=lambda event: None)

    def refuses(job: Job) -> Report:
        return Report(error=f"{job.name} refuses", wrong_input=job.name == "t1")

    with pytest.raises(InputError, match="t1 refuses"):
        launch(refuses, fleet, follower)


def test_a_launcher_says_what_it_cannot_do(fleet: Fleet) -> None:
    """When the fleet is made."""
    with pytest.raises(InputError, match="threads needs --workers"):
        Fleet(backend="threads")
    with pytest.raises(InputError, match="choose one of loky, dask, threads"):
        Fleet(backend="ray", workers=2)
