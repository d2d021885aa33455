"""Optuna's journal in a file as a storage: on one machine or a shared disk.

Responsible for a file that a process killed in the middle of a line does not spoil. May assume that every writer of a
file uses this module.
"""

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import (
    JournalFileBackend,
    JournalFileSymlinkLock,
)

from storage.errors import StorageError
from storage.files import disk_errors
from storage.paths import Paths
from storage.studies.backend import JOURNAL


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


class JournalFile:
    """The backend for `journal:`."""

    def open(self, url: str) -> JournalStorage:
        """Open one file, and make it where needed."""
        return JournalStorage(FileJournal(_file(url)))

    def read(self, url: str) -> JournalStorage:
        """Open one file that exists: reading appends nothing."""
        return JournalStorage(FileJournal(_path(url)))

    def exists(self, url: str) -> bool:
        """Return whether there is a file."""
        return _path(url).exists()

    def lock(self, storage: BaseStorage, name: str) -> AbstractContextManager[Any]:
        """Lock a file beside the journal."""
        if not (isinstance(storage, JournalStorage) and isinstance(storage._backend, FileJournal)):
            raise StorageError(f"{type(storage).__name__} is no journal in a file")
        return FileLock(f"{storage._backend._path}.{name}.lock")

    def limits(self) -> list[str]:
        """Warn of its length."""
        return ["a journal file as a storage is read by every worker as a whole: good for some hundred trials"]

    def heal(self, url: str) -> int:
        """Cut off a last line whose writer died in the middle of it."""
        path = _file(url)
        with disk_errors(path):
            return FileJournal(path).heal()

    def upgrade(self, url: str) -> None:
        """Return None: there are no tables."""


def _path(url: str) -> Path:
    return Path(url.removeprefix(JOURNAL).removeprefix("//"))


def _file(url: str) -> Path:
    path = _path(url)
    Paths.create(path.parent)
    return path


def _cut_torn_line(path: Path) -> int:
    """Truncate to the last newline."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        if not end or _byte(file, end - 1) == b"\n":
            return 0
        whole_bytes = end
        while whole_bytes and _byte(file, whole_bytes - 1) != b"\n":
            whole_bytes -= 1
        file.truncate(whole_bytes)
        return end - whole_bytes


def _byte(file: Any, position: int) -> bytes:
    file.seek(position)
    byte: bytes = file.read(1)
    return byte
