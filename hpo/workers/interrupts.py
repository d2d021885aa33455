"""SIGINT, SIGTERM and SIGHUP end a worker: at once where that is safe, and at the next safe point where it is not.

Responsible for the flag and the handlers. An exception raised by a signal can be lost (inside a finaliser, say), and a
thread mask does not keep a signal from other threads, so the request is remembered and asked for again. A storage is
no safe place: what is raised inside a transaction can leave it open, and nothing more can be written.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import TypeVar

from objectives.progress import Progress

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """The process was told to end by another than the terminal's user."""


class Interrupts:
    """Whether the process was asked to stop; one per process, used by its main thread."""

    def __init__(self) -> None:
        self._requested: type[KeyboardInterrupt] | None = None
        self._deferred = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Let SIGINT raise `KeyboardInterrupt` inside the block, and the others `Terminated`.

        A signal that the process ignores stays ignored.
        Python lets only the main thread handle signals: in another one, inside a Dask worker say, nothing is watched.
        """
        if current_thread() is not main_thread():
            yield
            return
        watched = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._handle) for number in watched}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Raise a signal inside the block when the outermost one ends: no trial is claimed without its worker knowing.

        A block that fails raises what it failed with; the signal is raised at the next safe point.
        """
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before
        if not self._deferred:
            self.check()

    def shielded(self, step: Callable[[], T]) -> Callable[[], T]:
        """Make `step` one that ends before a signal is raised."""

        def whole() -> T:
            with self.deferred():
                return step()

        return whole

    def check(self) -> None:
        """Raise what the first signal stands for, if one came."""
        if self._requested is not None:
            raise self._requested

    def checked(self, progress: Progress) -> Progress:
        """Make `progress` a safe point: it is called often, wherever work takes long."""

        def report(phase: str, done: int, total: int) -> None:
            self.check()
            progress(phase, done, total)

        return report

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._requested = self._requested or (KeyboardInterrupt if number == signal.SIGINT else Terminated)
        if not self._deferred:
            raise self._requested
