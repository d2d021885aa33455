"""Many workers, one command: start them, look after them, and say how the study goes.

Responsible for the loop that watches, the same for every launcher, and for starting again those that died. May assume
nothing about what workers do, except that the study in the storage shows it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import optuna

from hpo.launch.dask import Dask
from hpo.launch.following import Follower
from hpo.launch.launcher import Death, Job, Launcher, Report, Task, WorkerRequest
from hpo.launch.processes import Processes
from objectives.errors import InputError, RunError

LAUNCHERS: dict[str, type[Launcher]] = {"loky": Processes, "dask": Dask}
POLL_SECONDS = 0.5
# Deaths in a row, while no trial ends anywhere, after which workers are not started again.
MOST_DEATHS = 10


@dataclass(frozen=True, kw_only=True)
class Fleet(WorkerRequest):
    """The workers that are to be started, and by whom: one of `LAUNCHERS`."""

    backend: str = "loky"

    def __post_init__(self) -> None:
        if self.backend not in LAUNCHERS:
            raise InputError(f"backend {self.backend!r} is unknown; choose one of {', '.join(LAUNCHERS)}")
        refusal = LAUNCHERS[self.backend].refusal(self)
        if refusal:
            raise InputError(refusal)


def launch(task: Task, fleet: Fleet, follower: Follower) -> list[str]:
    """Run a task in many workers, until all have ended; returns what a person should know besides.

    Raises:
        InputError: If the workers cannot be started, or refuse what they are to do.
        RunError: If workers keep dying, or all of them stopped because of an error.
        KeyboardInterrupt: On SIGINT or SIGTERM; running trials are back in the queue.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    launcher = LAUNCHERS[fleet.backend](fleet, task)
    reports = _reports(launcher, {job.name: job for job in launcher.jobs()}, follower)
    follower.look()
    errors = [report for report in reports if report.error]
    if errors and len(errors) == len(reports):
        worst = next((report for report in errors if report.wrong_input), errors[0])
        raise (InputError if worst.wrong_input else RunError)(worst.error)
    stopped = [f"a worker stopped: {report.error}" for report in errors]
    return [*dict.fromkeys(note for report in reports for note in report.notes), *stopped]


def _reports(launcher: Launcher, jobs: Mapping[str, Job], follower: Follower) -> list[Report]:
    reports: list[Report] = []
    deaths, ended = 0, -1
    with follower.interrupts.watched():
        try:
            for job in jobs.values():
                launcher.start(job)
            while len(reports) < len(jobs):
                progress = follower.look()
                if progress > ended:
                    deaths, ended = 0, progress
                for name, ending in launcher.poll().items():
                    if isinstance(ending, Report):
                        reports.append(ending)
                        continue
                    deaths += 1
                    _start_again(launcher, jobs[name], ending, deaths, follower)
                time.sleep(POLL_SECONDS)
        finally:
            launcher.stop()
    return reports


def _start_again(launcher: Launcher, job: Job, ending: Death, deaths: int, follower: Follower) -> None:
    if deaths > MOST_DEATHS:
        raise RunError(f"{deaths} workers died while no trial ended; try --workers 1 to see why")
    follower.say(f"worker {job.name} ({ending.name}) died; it is started again")
    launcher.start(job)
