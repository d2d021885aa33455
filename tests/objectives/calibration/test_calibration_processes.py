"""Commands that calibrate at the same time share the work, and one that dies costs only what it had not finished."""

import json
import os
import signal
from pathlib import Path

import pytest

from objectives.bundled.text import held_out
from storage.cache import TensorCache
from storage.files import TEMPORARY
from storage.paths import Paths
from tests.processes import finish, run_cli, start, wait_until


@pytest.fixture
def calibrate(tmp_path: Path) -> list[str]:
    """A command that calibrates the bundled model on local text, into a cache below `tmp_path`."""
    for name, part in (("calibration", held_out("docstrings")), ("evaluation", held_out("topics"))):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(part))
    command = f"calibrate --cache {tmp_path / 'home'} --json --seq-len 128 --eval-samples 4 --sizes 16,24,64"
    return [
        *command.split(),
        "--calib-data",
        str(tmp_path / "calibration.txt"),
        "--eval-data",
        str(tmp_path / "evaluation.txt"),
    ]


def test_two_processes_at_once_read_every_sample_once(calibrate: list[str], tmp_path: Path) -> None:
    """Two commands on one empty cache share the work, and a third one finds nothing to do."""
    outputs = [tmp_path / name for name in ("first", "second", "third")]
    assert finish(*[start(run_cli, calibrate, output) for output in outputs[:2]]) == [0, 0]
    assert finish(start(run_cli, calibrate, outputs[2])) == [0]
    records = [json.loads(output.with_suffix(".out").read_text()) for output in outputs]
    # 16..24 belongs to size 24 alone: 64 is cut at 16, 32 and 64.
    assert records[0]["samples_read"] + records[1]["samples_read"] == 64 + 8
    assert records[2]["samples_read"] == 0
    assert records[0]["entries"] == records[1]["entries"] == records[2]["entries"]
    lines = [line for output in outputs for line in output.with_suffix(".err").read_text().splitlines()]
    messages = [line for line in lines if line.startswith("praqtune: ")]
    assert len(messages) <= 1
    assert all("another process is computing this; waiting for it" in message for message in messages)
    assert_whole(tmp_path / "home", 4)


def assert_whole(home: Path, count: int) -> None:
    """The cache holds so many whole entries and nothing else."""
    cache = TensorCache(Paths(home))
    found = [entry.key for entry in cache.entries()]
    assert sorted(os.listdir(home / "calibration")) == found
    assert len(found) == count
    assert [cache.verify(key) for key in found] == [[]] * count
    assert os.listdir(home / "leases") == []


@pytest.mark.slow
def test_a_process_killed_midway_is_replaced_by_the_one_that_waits(calibrate: list[str], tmp_path: Path) -> None:
    """After `kill -9` the waiting command computes exactly what the dead one had not finished."""
    home = tmp_path / "home"
    first = start(run_cli, calibrate, tmp_path / "first")
    wait_until(lambda: list(home.glob(f"calibration/{TEMPORARY}*")), "the first entry being written")
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = start(run_cli, calibrate, tmp_path / "second")
        errors = tmp_path / "second.err"
        wait_until(lambda: errors.exists() and "waiting for it" in errors.read_text(), "the second process waiting")
        assert list(home.glob(f"calibration/{TEMPORARY}*"))
        done = [entry.about["samples"] for entry in TensorCache(Paths(home)).entries()]
    finally:
        first.kill()
    assert finish(first, second) == [-signal.SIGKILL, 0]
    record = json.loads((tmp_path / "second.out").read_text())
    assert record["samples_read"] == 64 + 8 - sum(end - start for start, end in done)
    assert len(errors.read_text().splitlines()) == 1
    assert_whole(home, 4)
