"""Leases: who computes what, for processes and machines that share a directory.

Responsible for one owner at a time and for a successor when it dies. A lease is a file that its owner keeps
refreshing (filelock's SoftFileLease): exclusive creation and modification times only, so it also works on network
file systems without locks. May assume that what two owners publish under one name is equally good: an owner that was
suspended for long goes on beside its successor.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout

from storage.files import disk_errors
from storage.paths import Paths

LEASE_SECONDS = 30.0
POLL_SECONDS = 0.5


class Lease:
    """The lease on one name. Whoever waits for it keeps this object: only what it has seen tells that an owner died.

    An owner that died on the same machine is succeeded at once, any other after `LEASE_SECONDS` in which this object
    saw no refresh.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._path = directory / f"{name}.lease"
        self._file = SoftFileLease(self._path, lease_duration=LEASE_SECONDS, poll_interval=POLL_SECONDS)

    @contextmanager
    def if_free(self, timeout: float = 0.0) -> Iterator[bool]:
        """Own the name inside the block if nobody does, or lets go of it within `timeout` seconds; says whether.

        Raises:
            StorageError: If the directory cannot be written.
        """
        Paths.create(self._path.parent)
        with disk_errors(self._path):
            _remove_torn(self._path)
            try:
                self._file.acquire(timeout=timeout)
            except Timeout:
                free = False
            else:
                free = True
        try:
            yield free
        finally:
            if free:
                self._file.release()

    @contextmanager
    def held(self, waiting: Callable[[str], None]) -> Iterator[None]:
        """Be the only owner inside the block; `waiting` is told now and then while another one is at it.

        Raises:
            StorageError: If the directory cannot be written.
        """
        while True:
            with self.if_free(POLL_SECONDS) as owns:
                if owns:
                    yield
                    return
            waiting(f"another process is computing this; waiting for it (its lease is {self._path})")


def _remove_torn(path: Path) -> None:
    """Remove an empty lease file: what a crash of its machine leaves, and nobody could tell whose it was."""
    with suppress(FileNotFoundError):
        status = path.stat()
        if not status.st_size and time.time() - status.st_mtime > LEASE_SECONDS:
            path.unlink()
