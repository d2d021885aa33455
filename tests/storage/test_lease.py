"""However many processes ask and whatever happens to them, one computes, and the others wait or take over."""

import errno
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic, time

import pytest

from storage.cache import TensorCache
from storage.errors import StorageError
from storage.files import TEMPORARY
from storage.lease import LEASE_SECONDS
from storage.paths import Paths
from storage.results import ResultStore
from tests.processes import CONTEXT, finish, start, wait_until
from tests.storage.generated import same
from tests.storage.workers import KEY, PARTS, compute, measure_once, race, tensors

SHORT_LEASE = 0.3
"""Seconds; only owners that are suspended are waited for so long."""
AT_ONCE = 20.0
"""Seconds; far below `LEASE_SECONDS`, far above what a busy machine needs."""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The home of a cache; no process outlives its test, whatever happened to it."""
    yield tmp_path
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


def events(home: Path) -> list[tuple[int, str]]:
    """What the processes noted, in order: process and event."""
    journal = home / "journal"
    lines = journal.read_text().splitlines() if journal.exists() else []
    return [(int(pid), event) for pid, event in (line.split(" ", 1) for line in lines)]


def count(home: Path, event: str) -> int:
    return sum(noted == event for _, noted in events(home))


def wait_for(home: Path, process: BaseProcess, event: str) -> None:
    wait_until(lambda: (process.pid, event) in events(home), f"{event!r} of {process.name}")


def start_paused(home: Path, pause: str, lease_seconds: float | None = None) -> BaseProcess:
    """A process that has come to the event `pause` and goes no further."""
    process = start(compute, home, pause=pause, lease_seconds=lease_seconds)
    wait_for(home, process, pause)
    return process


def let_go(home: Path, event: str) -> None:
    """Let the processes that are paused at `event` go on."""
    (home / f"go {event}").touch()


def assert_whole(home: Path) -> None:
    """The entry is what any process would have written, and nothing else lies in the cache."""
    cache = TensorCache(Paths(home))
    assert [entry.key for entry in cache.entries()] == [KEY]
    assert cache.verify(KEY) == []
    assert all(same(cache.read(KEY, part), tensors(part)) for part in PARTS)
    assert os.listdir(home / "calibration") == [KEY]
    assert os.listdir(home / "leases") == []


def test_processes_that_start_together_compute_once(home: Path) -> None:
    """Three processes that ask for the same five keys at the same moments compute each of them once."""
    keys = [f"{number:02d}" for number in range(5)]
    barrier = CONTEXT.Barrier(3)
    assert finish(*[start(race, home, barrier, keys) for _ in range(3)]) == [0, 0, 0]
    assert [count(home, f"computing {key}") for key in keys] == [1] * len(keys)
    assert sorted(os.listdir(home / "calibration")) == keys


def test_a_waiting_process_says_so_now_and_then_and_reads_what_the_other_computed(home: Path) -> None:
    """Waiting through many polls is a sign of life each, and no computation."""
    owner = start_paused(home, "computing")
    waiter = start(compute, home)
    wait_for(home, waiter, "waiting")
    wait_until(lambda: count(home, "waiting") > 2, "some polls")
    assert (waiter.pid, "holding") not in events(home)
    let_go(home, "computing")
    assert finish(owner, waiter) == [0, 0]
    assert count(home, "computing") == 1
    assert_whole(home)


def test_nobody_waits_for_a_lease_that_is_free(home: Path) -> None:
    """One process after the other gets no message."""
    assert finish(start(compute, home)) == [0]
    assert finish(start(compute, home)) == [0]
    assert count(home, "waiting") == 0
    assert_whole(home)


@pytest.mark.parametrize("when", ["computing", "wrote second", "published"])
def test_a_killed_owner_is_replaced_at_once(when: str, home: Path) -> None:
    """The process that waits takes over from one killed while computing, writing or just done, and cleans up."""
    owner = start_paused(home, when)
    waiter = start(compute, home)
    wait_for(home, waiter, "waiting")
    assert bool(list(home.glob(f"calibration/{TEMPORARY}*"))) == (when == "wrote second")
    owner.kill()
    killed = monotonic()
    wait_for(home, waiter, "holding")
    assert monotonic() - killed < AT_ONCE < LEASE_SECONDS
    assert finish(owner, waiter) == [-signal.SIGKILL, 0]
    assert count(home, "computing") == (1 if when == "published" else 2)
    assert_whole(home)


def test_a_process_that_comes_after_a_killed_one_need_not_wait(home: Path) -> None:
    """What a dead owner left is taken over at once by the next one, even without anyone waiting."""
    owner = start_paused(home, "wrote first")
    owner.kill()
    finish(owner)
    started = monotonic()
    assert finish(start(compute, home)) == [0]
    assert monotonic() - started < AT_ONCE < LEASE_SECONDS
    assert_whole(home)


@pytest.mark.parametrize("when", ["wrote first", "wrote third"])
def test_an_owner_stopped_while_writing_loses_its_work(when: str, home: Path) -> None:
    """An owner that slept beyond its lease finds its half entry cleared and publishes nothing."""
    owner = start_paused(home, when, SHORT_LEASE)
    os.kill(owner.pid, signal.SIGSTOP)
    let_go(home, when)
    successor = start(compute, home, lease_seconds=SHORT_LEASE)
    assert finish(successor) == [0]
    assert_whole(home)
    os.kill(owner.pid, signal.SIGCONT)
    assert finish(owner) == [0]
    assert [event for pid, event in events(home) if pid == owner.pid][-1].startswith("lost: ")
    assert (successor.pid, "published") in events(home)
    assert_whole(home)


def test_an_owner_stopped_before_writing_publishes_harmlessly(home: Path) -> None:
    """An owner that slept through its successor's work writes the same entry again, and nobody is hurt."""
    owner = start_paused(home, "cleared", SHORT_LEASE)
    os.kill(owner.pid, signal.SIGSTOP)
    let_go(home, "cleared")
    assert finish(start(compute, home, lease_seconds=SHORT_LEASE)) == [0]
    os.kill(owner.pid, signal.SIGCONT)
    assert finish(owner) == [0]
    assert (owner.pid, "published") in events(home)
    assert_whole(home)


def test_an_owner_that_lost_its_lease_does_not_release_its_successors(home: Path) -> None:
    """The end of an owner that was replaced opens the door to nobody."""
    owner = start_paused(home, "wrote first", SHORT_LEASE)
    os.kill(owner.pid, signal.SIGSTOP)
    successor = start_paused(home, "wrote second", SHORT_LEASE)
    [lease] = (home / "leases").iterdir()
    successors = lease.read_bytes()
    let_go(home, "wrote first")
    os.kill(owner.pid, signal.SIGCONT)
    assert finish(owner) == [0]
    assert lease.read_bytes() == successors
    let_go(home, "wrote second")
    assert finish(successor) == [0]
    assert_whole(home)


@pytest.mark.parametrize(("age", "taken"), [(2 * LEASE_SECONDS, True), (0, False)])
def test_a_lease_that_names_nobody_is_taken_over_when_it_is_old(
    age: float, taken: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty lease file, which a crash of the machine may leave, blocks nobody for longer than a lease."""
    lease = home / "leases" / "model.lease"
    lease.parent.mkdir()
    lease.touch()
    os.utime(lease, (time() - age,) * 2)
    waiter = start(compute, home)
    if not taken:
        wait_for(home, waiter, "waiting")
        lease.unlink()
    assert finish(waiter) == [0]
    assert bool(count(home, "waiting")) != taken
    assert_whole(home)


def test_who_measures_something_is_succeeded_when_it_shows_no_sign_of_life(home: Path) -> None:
    """Waiting is polling, and still the one who waits sees that nothing was refreshed for too long."""
    owner = start(measure_once, home, "measuring", SHORT_LEASE)
    wait_for(home, owner, "measuring")
    assert owner.pid is not None
    os.kill(owner.pid, signal.SIGSTOP)
    successor = start(measure_once, home, None, SHORT_LEASE)
    assert finish(successor) == [0]
    assert count(home, "measuring") == 2
    let_go(home, "measuring")
    os.kill(owner.pid, signal.SIGCONT)
    assert finish(owner) == [0]
    assert ResultStore(home / "results").load(KEY)[0] == {"of": "measuring"}


def test_a_failure_inside_gives_the_lease_back(home: Path) -> None:
    """Whoever fails while computing lets the next one try at once, and its error reaches the caller."""
    cache = TensorCache(Paths(home))
    messages: list[str] = []
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), cache.lease("model", waiting=messages.append):
            raise ZeroDivisionError
    assert messages == []


def test_leases_of_different_names_are_independent(home: Path) -> None:
    """Two models can be calibrated at the same time."""
    cache = TensorCache(Paths(home))
    messages: list[str] = []
    with cache.lease("one", waiting=messages.append), cache.lease("two", waiting=messages.append):
        pass
    assert messages == []


def test_a_cache_deleted_under_its_owner_fails_nobody(home: Path) -> None:
    """Someone who deletes the leases by hand causes no error where the lease is given back."""
    cache = TensorCache(Paths(home))
    with cache.lease("model", waiting=print):
        shutil.rmtree(home / "leases")
    assert not (home / "leases").exists()


def test_a_lease_that_does_not_fit_on_the_disk_is_refused_in_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full to the last byte is reported as such."""

    def refuse(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    lease = TensorCache(Paths(home)).lease("model", waiting=print)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", refuse)
        with pytest.raises(StorageError, match=r"model\.lease: No space left.*free space"):
            lease.__enter__()
    assert os.listdir(home / "leases") == []
