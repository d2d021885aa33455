"""Many workers, one command: start them through joblib, look after them, and say how the study goes.

Responsible for processes and for nothing that they do: each runs `optimize` as if it had been started by hand, and
they meet in the storage. On this machine a worker is a loky process of its own, so one that dies takes no other with
it; on a cluster it is a task of joblib's Dask backend. May assume that every machine reaches the storage and the
shared directory under the same names.
"""

import math
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import joblib
import optuna
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool

from hpo.launch.devices import AUTO, assigned, cores, environment, gpus, inherited, inside, own
from hpo.launch.following import Follower
from hpo.optimize import StudyPlan, optimize
from hpo.study.events import Event, Listener, Notice
from hpo.workers.interrupts import Interrupts
from hpo.workers.worker import Budget
from objectives.errors import InputError, RunError
from objectives.model.memory import keep_freed_memory
from objectives.progress import silent
from quant.errors import QuantizationError
from storage.errors import AddressError, StorageError
from storage.paths import Paths
from storage.studies.opening import open_storage, storage_errors

Backend = Literal["loky", "dask"]
BACKENDS: tuple[Backend, ...] = ("loky", "dask")
POLL_SECONDS = 0.5
STOP_SECONDS = 30.0
# Deaths in a row, while no trial ends anywhere, after which workers are not started again.
MOST_DEATHS = 10


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one worker is to do; it goes there pickled.

    Attributes:
        plan: The study; its model's device is the worker's.
        storage: URL, or `@FILE`; not shown, because it may hold a password.
        home: The shared directory.
        trials: Of the whole study.
        until: No trial begins after this time of the clock; None for no limit.
        name: The worker's.
    """

    plan: StudyPlan
    storage: str = field(repr=False)
    home: Path
    trials: int
    until: float | None
    name: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a worker ended: what a person should know, and the error that stopped it, if one did."""

    notes: tuple[str, ...] = ()
    error: str | None = None
    wrong_input: bool = False


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The workers that are to be started.

    Attributes:
        workers: How many; None for one per device.
        devices: `auto`, `cpu`, or names separated by commas; with `dask` it is the machines' own affair.
        backend: Who starts them.
        scheduler: Address of the Dask cluster.
    """

    workers: int | None = None
    devices: str = "auto"
    backend: Backend = "loky"
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise InputError(f"backend {self.backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
        if self.backend == "dask" and not self.scheduler:
            raise InputError("--backend dask needs the --scheduler of a running cluster, tcp://HOST:8786 for example")
        if self.backend == "dask" and not self.workers:
            raise InputError("--backend dask needs --workers N: how many tasks the cluster shall run")


def work(job: Job) -> Report:
    """Be one worker; expected errors are values, because exceptions of other packages may not travel."""
    keep_freed_memory()
    # Notices are printed where the study is watched from.
    deadline = math.inf if job.until is None else time.monotonic() + job.until - time.time()
    notes: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Notice) and not event.passing:
            notes.append(event.text)

    plan = on_device(job.plan, own()) if job.plan.bench.model.device == AUTO else job.plan
    try:
        with storage_errors(job.storage):
            storage = open_storage(job.storage)
            budget = Budget(trials=job.trials, deadline=deadline)
            outcome = optimize(plan, storage, Paths(job.home), budget, listen, silent, job.name)
    except KeyboardInterrupt:
        return Report(notes=tuple(notes), error="interrupted")
    except (InputError, QuantizationError, AddressError) as error:
        return Report(notes=tuple(notes), error=str(error), wrong_input=True)
    except (RunError, StorageError) as error:
        return Report(notes=tuple(notes), error=str(error))
    return Report(notes=(*notes, *outcome.notes))


def launch(plan: StudyPlan, storage: str, paths: Paths, fleet: Fleet, budget: Budget, listen: Listener) -> list[str]:
    """Run a study with many workers, to its end; returns what a person should know besides.

    Raises:
        InputError: If the workers cannot be started, or refuse the plan.
        RunError: If workers keep dying, or all of them stopped because of an error.
        KeyboardInterrupt: On SIGINT or SIGTERM; running trials are back in the queue.
    """
    until = None if budget.deadline == math.inf else time.time() + budget.deadline - time.monotonic()
    job = Job(plan=plan, storage=storage, home=paths.home, trials=budget.trials, until=until, name="")
    follower = Follower(storage=storage, study=plan.name, budget=budget, listen=listen)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if fleet.backend == "dask":
        reports = _on_dask(job, fleet, follower)
    else:
        devices = assigned(fleet.workers, fleet.devices, gpus())
        reports = _on_this_machine(job, devices, follower)
    follower.look()
    errors = [report for report in reports if report.error]
    if errors and len(errors) == len(reports):
        worst = next((report for report in errors if report.wrong_input), errors[0])
        raise (InputError if worst.wrong_input else RunError)(worst.error)
    stopped = [f"a worker stopped: {report.error}" for report in errors]
    return [*dict.fromkeys(note for report in reports for note in report.notes), *stopped]


def _on_dask(job: Job, fleet: Fleet, follower: Follower) -> list[Report]:
    """Tasks of an existing cluster; Dask starts those of a worker that died again elsewhere."""
    jobs = [_named(job, f"dask-{index}", AUTO) for index in range(fleet.workers or 1)]

    def run() -> list[Report]:
        with joblib.parallel_config("dask", scheduler_host=fleet.scheduler):
            found: list[Report] = joblib.Parallel(n_jobs=len(jobs), batch_size=1, pre_dispatch="all")(
                joblib.delayed(work)(job) for job in jobs
            )
            return found

    # The context of joblib belongs to a thread, and this one watches.
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(run)
        while not future.done():
            follower.look()
            time.sleep(POLL_SECONDS)
        return future.result()


class _Process:
    """One loky process at work, started again when it dies."""

    def __init__(self, job: Job, environ: dict[str, str]) -> None:
        self._job, self._environ = job, environ
        self._start()

    def _start(self) -> None:
        self._pool = ProcessPoolExecutor(max_workers=1, timeout=None, env=self._environ)
        self.pid: int = self._pool.submit(os.getpid).result()
        self._future: Future[Report] = self._pool.submit(work, self._job)

    def report(self) -> Report | None:
        """How it ended; None while it runs.

        Raises:
            BrokenProcessPool: If it died.
        """
        return self._future.result() if self._future.done() else None

    def start_again(self) -> None:
        """After it died."""
        self._pool.shutdown(wait=False)
        self._start()

    def stop(self) -> None:
        """Ask it to hand its trial back."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def end(self) -> None:
        """Wait for it a while, then let it go."""
        # How it ended matters to nobody any more.
        wait([self._future], timeout=STOP_SECONDS)
        self._pool.shutdown(wait=False, kill_workers=True)


def _on_this_machine(job: Job, devices: Sequence[str], follower: Follower) -> list[Report]:
    visible, count = inherited(os.environ), cores()
    reports: dict[str, Report] = {}
    with Interrupts().watched():
        running = {
            f"w{index}": _Process(
                _named(job, f"w{index}", inside(device)), environment(device, devices, visible, count)
            )
            for index, device in enumerate(devices)
        }
        try:
            deaths, ended = 0, -1
            while running:
                progress = follower.look()
                if progress > ended:
                    deaths, ended = 0, progress
                for name, process in list(running.items()):
                    try:
                        report = process.report()
                    except BrokenProcessPool as error:
                        deaths += 1
                        if deaths > MOST_DEATHS:
                            text = f"{deaths} workers died while no trial ended; try --workers 1 to see why"
                            raise RunError(text) from error
                        follower.say(f"worker {name} (process {process.pid}) died; it is started again")
                        process.start_again()
                        continue
                    if report is not None:
                        reports[name] = report
                        running.pop(name).end()
                time.sleep(POLL_SECONDS)
        finally:
            for process in running.values():
                process.stop()
            for process in running.values():
                process.end()
    return list(reports.values())


def _named(job: Job, name: str, device: str) -> Job:
    return replace(job, name=name, plan=on_device(job.plan, device))


def on_device(plan: StudyPlan, device: str) -> StudyPlan:
    """The same plan with its model somewhere else."""
    return replace(plan, bench=replace(plan.bench, model=replace(plan.bench.model, device=device)))
