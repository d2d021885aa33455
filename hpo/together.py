"""A study that many workers of one command work on.

Responsible for what each of them does: it runs `optimize` as if it had been started by hand. May assume that every
machine reaches the storage and the shared directory under the same names.
"""

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpo.launch.following import Follower
from hpo.launch.launch import Fleet, launch
from hpo.launch.launcher import Job, Report
from hpo.optimize import optimize
from hpo.plan import StudyPlan
from hpo.study.events import Event, Listener, Notice
from hpo.workers.worker import Budget
from objectives.errors import InputError, RunError
from objectives.model.memory import keep_freed_memory
from objectives.progress import silent
from quant.errors import QuantizationError
from storage.errors import AddressError, StorageError
from storage.paths import Paths
from storage.studies.opening import open_storage, storage_errors


@dataclass(frozen=True, kw_only=True)
class Share:
    """What every worker is to do; it goes there pickled.

    Attributes:
        plan: The study; its model goes to the worker's device.
        storage: URL, or `@FILE`; not shown, because it may hold a password.
        home: The shared directory.
        trials: Of the whole study.
        until: No trial begins after this time of the clock; None for no limit.
    """

    plan: StudyPlan
    storage: str = field(repr=False)
    home: Path
    trials: int
    until: float | None

    def __call__(self, job: Job) -> Report:
        """Be one worker; expected errors are values, because exceptions of other packages may not travel."""
        keep_freed_memory()
        notes: list[str] = []

        def listen(event: Event) -> None:
            # Notices that pass are printed where the study is watched from.
            if isinstance(event, Notice) and not event.passing:
                notes.append(event.text)

        try:
            remarks = self._optimize(job, listen)
        except KeyboardInterrupt:
            return Report(notes=tuple(notes), error="interrupted")
        except (InputError, QuantizationError, AddressError) as error:
            return Report(notes=tuple(notes), error=str(error), wrong_input=True)
        except (RunError, StorageError) as error:
            return Report(notes=tuple(notes), error=str(error))
        return Report(notes=(*notes, *remarks))

    def _optimize(self, job: Job, listen: Listener) -> tuple[str, ...]:
        deadline = math.inf if self.until is None else time.monotonic() + self.until - time.time()
        plan = _on_device(self.plan, job.device)
        with storage_errors(self.storage):
            storage = open_storage(self.storage)
            budget = Budget(trials=self.trials, deadline=deadline)
            return tuple(optimize(plan, storage, Paths(self.home), budget, listen, silent, job.name).notes)


def optimize_together(
    plan: StudyPlan, storage: str, paths: Paths, fleet: Fleet, budget: Budget, listen: Listener
) -> list[str]:
    """Run a study with many workers, to its end; returns what a person should know besides.

    Raises:
        InputError: If the workers cannot be started, or refuse the plan.
        RunError: If workers keep dying, or all of them stopped because of an error.
        KeyboardInterrupt: On SIGINT or SIGTERM; running trials are back in the queue.
    """
    until = None if budget.deadline == math.inf else time.time() + budget.deadline - time.monotonic()
    share = Share(plan=plan, storage=storage, home=paths.home, trials=budget.trials, until=until)
    return launch(share, fleet, Follower(storage=storage, study=plan.name, budget=budget, listen=listen))


def _on_device(plan: StudyPlan, device: str) -> StudyPlan:
    return replace(plan, bench=replace(plan.bench, model=replace(plan.bench.model, device=device)))
