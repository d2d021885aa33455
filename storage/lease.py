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


@contextmanager
def lease(directory: Path, name: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Be the only owner of `name` inside the block; `waiting` is told now and then while another one is at it.

    Whoever waits takes over at once when the owner died on the same machine, and after `LEASE_SECONDS` without a
    refresh otherwise.

    Raises:
        StorageError: If the directory cannot be written.
    """
    path = _path(directory, name)
    held = SoftFileLease(path, lease_duration=LEASE_SECONDS, poll_interval=POLL_SECONDS)
    with disk_errors(path):
        _remove_torn(path)
        while True:
            try:
                held.acquire(timeout=POLL_SECONDS)
                break
            except Timeout:
                waiting(f"another process is computing this; waiting for it (its lease is {path})")
    try:
        yield
    finally:
        held.release()


@contextmanager
def lease_if_free(directory: Path, name: str) -> Iterator[bool]:
    """Own `name` inside the block if nobody does; says whether.

    Raises:
        StorageError: If the directory cannot be written.
    """
    path = _path(directory, name)
    held = SoftFileLease(path, lease_duration=LEASE_SECONDS, poll_interval=POLL_SECONDS)
    with disk_errors(path):
        _remove_torn(path)
        try:
            held.acquire(timeout=0)
        except Timeout:
            free = False
        else:
            free = True
    try:
        yield free
    finally:
        if free:
            held.release()


def _path(directory: Path, name: str) -> Path:
    return Paths.create(directory) / f"{name}.lease"


def _remove_torn(path: Path) -> None:
    """Remove an empty lease file: what a crash of its machine leaves, and nobody could tell whose it was."""
    with suppress(FileNotFoundError):
        found = path.stat()
        if not found.st_size and time.time() - found.st_mtime > LEASE_SECONDS:
            path.unlink()
