"""A sign of life for a running trial, and an end for one that hangs.

Responsible for telling the storage every few seconds that a trial is being worked on, in which phase, and how far.
Whoever watches counts signs and reads no clocks, so the clocks of machines need not agree. May assume one running
trial per process; the signs come from a thread of their own, because the main one computes for minutes.
"""

import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Event, Lock, Thread
from time import monotonic
from types import TracebackType

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage

from hpo.standard_error import say
from hpo.study.attributes import BEAT, Beat, write_failure
from objectives.progress import Progress
from storage.typed_json import encode

log = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
# Six signs that did not come: a worker is dead, suspended or cut off.
GRACE_SECONDS = 60.0
HUNG = "timeout"
JOIN_SECONDS = 2.0


def leave(reason: str) -> None:
    """End the process: a thread cannot stop a computation that hangs."""
    say(f"praqtune: {reason}; this worker ends")
    os._exit(1)


class Heartbeat:
    """Signs of life of one trial while the `with` block runs.

    Args:
        storage: Where the trial is.
        trial_id: The storage's number of it.
        timeout: Seconds without progress after which the trial is ended; None for any number.
        ended: Called after a hanging trial was ended, with the reason.
    """

    def __init__(
        self,
        storage: BaseStorage,
        trial_id: int,
        timeout: float | None = None,
        ended: Callable[[str], None] = leave,
    ) -> None:
        self._storage, self._trial_id = storage, trial_id
        self._timeout, self._ended = timeout, ended
        self._lock, self._stop, self._news = Lock(), Event(), Event()
        self._state = ("starting", 0, 0)
        self._progressed = monotonic()
        self._count = 0
        self._thread = Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._news.set()
        # Without a connection a sign takes long; nobody waits for the last one.
        self._thread.join(JOIN_SECONDS)

    def note(self, phase: str, done: int, total: int) -> None:
        """Note progress: `phase` begins with the word for what is being done."""
        word = phase.split(" ", 1)[0]
        with self._lock:
            new = word != self._state[0]
            self._state, self._progressed = (word, done, total), monotonic()
        if new:
            self._news.set()

    def listening(self, progress: Progress) -> Progress:
        """Wrap `progress` so that it is noted on the way."""

        def report(phase: str, done: int, total: int) -> None:
            self.note(phase, done, total)
            progress(phase, done, total)

        return report

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._hangs():
                return
            try:
                self._beat()
            except UpdateFinishedTrialError:
                # Someone ended the trial: nobody waits for signs of it any more.
                return
            except Exception as error:
                # The main thread finds out for itself, and decides: here only one sign is late.
                log.warning("a heartbeat could not be written (%s); trying again", error)
            self._news.wait(self._pause())
            self._news.clear()

    def _beat(self) -> None:
        with self._lock:
            phase, done, total = self._state
        self._count += 1
        beat = Beat(count=self._count, phase=phase, done=done, total=total, at=datetime.now(UTC).isoformat())
        self._storage.set_trial_user_attr(self._trial_id, BEAT, encode(beat))

    def _pause(self) -> float:
        if self._timeout is None:
            return BEAT_SECONDS
        with self._lock:
            left = self._progressed + self._timeout - monotonic()
        return max(0.01, min(BEAT_SECONDS, left))

    def _hangs(self) -> bool:
        with self._lock:
            silent, (phase, done, total) = monotonic() - self._progressed, self._state
        if self._timeout is None or silent < self._timeout:
            return False
        reason = f"no progress for {silent:.0f} s while {phase} ({done}/{total}); see --trial-timeout"
        try:
            write_failure(self._storage, self._trial_id, HUNG, reason)
        except UpdateFinishedTrialError:
            return True
        self._ended(reason)
        return True
