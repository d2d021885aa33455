"""The door for whoever can run workers: what it is given, what it must do, and how a worker ends.

Responsible for the words that launchers and the loop that watches them share. May assume that a task may be pickled
and is the same for all workers, and that workers meet in the storage alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Job:
    """One worker.

    Attributes:
        name: Its own.
        device: What its process calls the device it computes on; `auto` where the machine decides.
    """

    name: str
    device: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a worker ended: what a person should know, and the error that stopped it, if one did."""

    notes: tuple[str, ...] = ()
    error: str | None = None
    wrong_input: bool = False


@dataclass(frozen=True, kw_only=True)
class Death:
    """The death of a worker without a report; `name` says to people which it was."""

    name: str


Task = Callable[[Job], Report]


@dataclass(frozen=True, kw_only=True)
class WorkerRequest:
    """Which workers are wanted.

    Attributes:
        workers: How many; None for as many as the launcher finds right.
        devices: `auto`, `cpu`, or names separated by commas; on a cluster it is the machines' own affair.
        scheduler: Address of a cluster.
    """

    workers: int | None = None
    devices: str = "auto"
    scheduler: str | None = None


class Launcher(Protocol):
    """Runs one task in many workers."""

    def __init__(self, request: WorkerRequest, task: Task) -> None: ...

    @staticmethod
    def refusal(request: WorkerRequest) -> str | None:
        """Say why such workers cannot be run here, in one line; None if they can."""

    def jobs(self) -> Sequence[Job]:
        """List one for each worker that is wanted.

        Raises:
            InputError: If they cannot be had.
        """

    def start(self, job: Job) -> None:
        """Start a worker; it may be one that died."""

    def poll(self) -> Mapping[str, Report | Death]:
        """Return how workers ended, by name, since the last call."""

    def stop(self) -> None:
        """Ask the workers that still run to hand their trials back, wait for them a while, and let everything go."""
