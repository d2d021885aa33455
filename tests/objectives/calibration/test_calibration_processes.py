"""Commands that calibrate at the same time share the work, and one that dies costs only what it had not finished."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from objectives.bundled.text import held_out
from objectives.calibration import calibration
from objectives.calibration.calibration import Calibration
from objectives.model.finding import find_blocks
from objectives.model.loading import Model
from objectives.progress import silent
from storage.cache import TensorCache
from storage.files import TEMPORARY
from storage.paths import Paths
from tests.objectives.calibration.workers import COUNT, die_in_pass, text_of
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("fatal", [0, 3])
def test_a_kill_in_the_middle_costs_the_blocks_of_one_pass(
    fatal: int, bundled: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who goes on runs no block before the one that was being recorded, and has the bits of an uninterrupted run."""
    assert finish(start(die_in_pass, tmp_path / "home", fatal)) == [-signal.SIGKILL]
    blocks, text = find_blocks(bundled.module), text_of(bundled.tokenizer)
    whole = Calibration(bundled, blocks, text, TensorCache(Paths(tmp_path / "whole")))
    whole.ensure([COUNT], silent)
    ran = set()

    def note(block: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        # Whether the model can begin in its middle is asked with one sequence.
        if len(args[0]) == COUNT:
            ran.add(block)

    norms = [bundled.module.get_submodule(block.name).input_layernorm for block in blocks]
    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    monkeypatch.setattr(calibration, "PASS_WORK", 0)
    resumed = Calibration(bundled, blocks, text, TensorCache(Paths(tmp_path / "home")))
    resumed.ensure([COUNT], silent)
    for handle in handles:
        handle.remove()
    assert ran == set(norms[fatal:])
    for block in blocks:
        own, expected = resumed.read(block, COUNT), whole.read(block, COUNT)
        for site, means in expected.inputs.items():
            assert torch.equal(own.inputs[site].gram, means.gram)
        for linear, seen in expected.outputs.items():
            assert torch.equal(own.outputs[linear].square, seen.square)
    assert_whole(tmp_path / "home", 1)
    entries = [TensorCache(Paths(tmp_path / name)).entries() for name in ("home", "whole")]
    assert [entry.size for entry in entries[0]] == [entry.size for entry in entries[1]]
