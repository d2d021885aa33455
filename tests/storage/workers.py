"""What the processes of `test_lease` and `test_files` do; every step is noted in a journal that they share."""

import os
import resource
from collections.abc import Iterable
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from time import sleep

import torch
from torch import Tensor

import storage.lease
from storage.cache import TensorCache
from storage.errors import LeaseLostError, StorageError
from storage.files import write_file
from storage.paths import Paths
from storage.results import ResultStore

KEY = "a1b2"
PARTS = ("first", "second", "third")


def tensors(part: str) -> dict[str, Tensor]:
    """What belongs into a part, whoever computes it."""
    return {"values": torch.arange(1000, dtype=torch.float64) * (1 + PARTS.index(part))}


def note(journal: Path, event: str, _: str = "") -> None:
    """Add a line that no other process can interleave with."""
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{os.getpid()} {event}\n".encode())
    os.close(descriptor)


def compute(home: Path, pause: str | None = None, lease_seconds: float | None = None) -> None:
    """Compute one entry as calibration does; at the event `pause`, wait for the file `home/go <pause>`."""
    if lease_seconds is not None:
        storage.lease.LEASE_SECONDS = lease_seconds
    journal = home / "journal"
    cache = TensorCache(Paths(home))

    def event(name: str) -> None:
        note(journal, name)
        while name == pause and not (home / f"go {pause}").exists():
            sleep(0.005)

    try:
        with cache.lease("model", waiting=partial(note, journal, "waiting")):
            event("holding")
            if KEY in cache:
                return
            event("computing")
            cache.clear_unfinished(KEY)
            event("cleared")
            with cache.new_entry(KEY, {"by": os.getpid()}) as entry:
                for part in PARTS:
                    entry.write(part, tensors(part))
                    event(f"wrote {part}")
            event("published")
    except LeaseLostError as error:
        note(journal, f"lost: {error}")


def race(home: Path, barrier: Barrier, keys: Iterable[str]) -> None:
    """For every key: start together with the other processes, and compute it unless it is there."""
    cache = TensorCache(Paths(home))
    for key in keys:
        barrier.wait()
        with cache.lease("model", waiting=partial(note, home / "journal", "waiting")):
            if key in cache:
                continue
            note(home / "journal", f"computing {key}")
            with cache.new_entry(key, {}) as entry:
                entry.write("only", tensors("first"))


def publish_together(home: Path, barrier: Barrier, keys: Iterable[str]) -> None:
    """Publish the same keys at the same time as the other processes, without any lease."""
    cache = TensorCache(Paths(home))
    for key in keys:
        with cache.new_entry(key, {}) as entry:
            entry.write("only", tensors("first"))
            barrier.wait()


def write_beyond_limit(home: Path, path: Path | None) -> None:
    """Write more than the operating system allows to this process: an entry, or the file `path`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    cache = TensorCache(Paths(home))
    try:
        if path is not None:
            write_file(path, bytes(30_000))
        else:
            with cache.new_entry(KEY, {}) as entry:
                entry.write("first", tensors("first"))
                note(home / "journal", "wrote first")
                entry.write("second", {"values": torch.zeros(30_000)})
    except StorageError as error:
        note(home / "journal", f"refused: {error}")


def measure_once(home: Path, pause: str | None, lease_seconds: float) -> None:
    """Have one result in the store, whoever measures it; at the event `pause`, wait for the file `home/go <pause>`."""
    storage.lease.LEASE_SECONDS = lease_seconds
    store, journal = ResultStore(home / "results"), home / "journal"

    def measure() -> None:
        note(journal, "measuring")
        while pause == "measuring" and not (home / f"go {pause}").exists():
            sleep(0.005)
        store.save(KEY, {"of": "measuring"}, tensors(PARTS[0]))

    store.once(KEY, measure, partial(note, journal, "waiting"))
