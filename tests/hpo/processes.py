"""What processes of tests in this folder run: importable functions."""

import os
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import torch
from optuna.trial import Trial

from hpo.search.acquisition import considered_settings
from hpo.search.pruners.registry import Pruning
from hpo.search.samplers.qmc import sobol
from hpo.space.space import make_space
from hpo.study.owner import Owner
from hpo.workers.queue import Queue
from hpo.workers.worker import Budget, Settled, Worker
from objectives.progress import silent
from quant.setting import Setting
from storage.results import ResultStore
from storage.studies.exclusive import exclusive
from storage.studies.opening import open_storage
from tests.hpo import made_studies

SPACE = make_space(Setting(), {})


def queue_of(url: str, name: str | None = None) -> Queue:
    """The queue of the study `s`."""
    storage = open_storage(url)
    study = optuna.load_study(storage=storage, study_name="s")
    return Queue(study=study, storage=storage, space=SPACE, owner=Owner.this(name=name))


def asker(url: str, home: Path) -> Worker:
    """A worker that can ask; it has no model."""
    torch.set_num_threads(1)
    fields: dict[str, Any] = {"bench": None, "sampler": "random", "pruning": Pruning(name="none"), "seed": 0}
    tuning: Any = SimpleNamespace(clusters=(), scored=())
    store = ResultStore(home / "results")
    return Worker(queue=queue_of(url), store=store, tuning=tuning, listen=lambda event: None, progress=silent, **fields)


def ask_all(url: str, home: Path, trials: int, target: Path) -> None:
    """Ask for trials and tell made-up values until the budget is used up; write the trials' numbers."""
    worker, numbers = asker(url, home), []
    while isinstance(trial := worker.ask(Budget(trials=trials), Settled()), Trial):
        numbers.append(str(trial.number))
        worker.study.tell(trial, 1.0 + trial.number)
    target.write_text("\n".join(numbers))


def write_considered(target: Path) -> None:
    """Write the settings that are considered after twelve trials of a method without a group size."""
    space = make_space(Setting(method="praq-mixed"), {})
    drawn = enumerate(islice(sobol(space, 0), 12))
    trials = [made_studies.trial(number, space, setting, 20.0 + number) for number, setting in drawn]
    target.write_text(repr(considered_settings(space, trials, sobol(space, 1), 1)))


def claim_all(url: str, target: Path) -> None:
    """Claim trials until none waits; write their numbers."""
    queue, numbers = queue_of(url), []
    while (trial := queue.claim()) is not None:
        numbers.append(str(trial.number))
    target.write_text("\n".join(numbers))


def count_up(url: str, counter: Path, times: int) -> None:
    """Read a number and write the next one, each time under the study's lock."""
    storage = open_storage(url)
    for _ in range(times):
        with exclusive(storage, "s"):
            counter.write_text(str(int(counter.read_text()) + 1))


def hold(url: str, ready: Path) -> None:
    """Take the study's lock and keep it."""
    with exclusive(open_storage(url), "s"):
        ready.write_text(str(os.getpid()))
        while True:
            pass
