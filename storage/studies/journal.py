"""Optuna's journal as a study storage: a file on one machine or a shared disk, or Redis.

Responsible for a file that a process killed in the middle of a line does not spoil, and for never unpickling anything
that comes from Redis. May assume that every writer of a file uses this module.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import (
    BaseJournalBackend,
    JournalFileBackend,
    JournalFileSymlinkLock,
    JournalRedisBackend,
)

from storage.files import disk_errors

REDIS_LOCK_SECONDS = 120.0


class FileJournal(JournalFileBackend):
    """Optuna's journal file, healed before it is written to.

    Whoever dies in the middle of a line leaves it without its end; what is appended next would make one broken line of
    two, and Optuna could never load the file again. Optuna's lock is held while the file is healed and written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._write_lock = JournalFileSymlinkLock(str(path))
        super().__init__(str(path), self._write_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add entries, each a line of JSON, and make them durable."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with disk_errors(self._path), self._healed(), self._path.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())

    def heal(self) -> int:
        """Cut off a last line without an end; returns the bytes that were cut."""
        with self._healed() as cut:
            return cut

    @contextmanager
    def _healed(self) -> Iterator[int]:
        """Hold Optuna's lock on a file of whole lines; gives the bytes that were cut for that."""
        self._write_lock.acquire()
        try:
            yield _cut_torn_line(self._path)
        finally:
            self._write_lock.release()


class Redis(BaseJournalBackend):
    """Optuna's journal in Redis without its snapshots.

    Optuna pickles a snapshot of the study into Redis now and then, and unpickles what it finds there: whoever may
    write to the server could run code in every worker. A backend without snapshots replays the whole log instead.
    """

    def __init__(self, url: str) -> None:
        self._journal = JournalRedisBackend(url)

    def read_logs(self, log_number_from: int) -> Iterable[Mapping[str, Any]]:  # type: ignore[override]
        """Entries from a number on."""
        return self._journal.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add entries."""
        self._journal.append_logs(logs)

    def lock(self, name: str) -> AbstractContextManager[Any]:
        """A lock that everyone on this server shares; it ends by itself when its holder died."""
        lock: AbstractContextManager[Any] = self._journal._redis.lock(name, timeout=REDIS_LOCK_SECONDS)
        return lock


class Journal(JournalStorage):
    """A journal that also has a lock."""

    def __init__(self, backend: FileJournal | Redis) -> None:
        super().__init__(backend)
        self.backend = backend

    def exclusive(self, name: str) -> AbstractContextManager[Any]:
        """One process at a time; other names do not wait."""
        if isinstance(self.backend, Redis):
            return self.backend.lock(f"praqtune-{name}")
        return FileLock(f"{self.backend._path}.{name}.lock")


def _cut_torn_line(path: Path) -> int:
    """Truncate to the last newline."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        if not end or _byte(file, end - 1) == b"\n":
            return 0
        kept = end
        while kept and _byte(file, kept - 1) != b"\n":
            kept -= 1
        file.truncate(kept)
        return end - kept


def _byte(file: Any, position: int) -> bytes:
    file.seek(position)
    read: bytes = file.read(1)
    return read
