"""A quantization that is killed or interrupted goes on from the blocks it had done, with the same bits."""

import os
import signal
import time
from contextlib import suppress
from math import inf
from pathlib import Path

import pytest
import torch

from objectives import kept_blocks, quantization
from objectives.kept_blocks import KeptBlocks
from objectives.quantized_blocks import QuantizedBlocks
from objectives.refined import hash_of_codes
from objectives.trial import Bench, Quantized, quantized
from quant.plan import Plan
from quant.setting import Setting
from storage.cache import TensorCache
from storage.files import TEMPORARY
from storage.paths import Paths
from tests.objectives import tiny
from tests.objectives.quantizing import PLANS, bundled_bench, die_after_blocks
from tests.processes import finish, start

AWQ = Plan.uniform(Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=3))
LAYOUTS = tiny.LAYOUTS | tiny.MIXTURES


@pytest.fixture(autouse=True)
def _long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block takes long enough."""
    monkeypatch.setattr(kept_blocks, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(kept_blocks, "WRITING_SHARE", inf)


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which blocks were quantized, by index."""
    indices: list[int] = []
    usual = quantization._quantized

    def noted(model: object, block: quantization.Block, *rest: object) -> QuantizedBlocks:
        indices.append(block.index)
        return usual(model, block, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(quantization, "_quantized", noted)
    return indices


def made_by(bench: Bench, plan: Plan = AWQ) -> tuple[Quantized, str]:
    """What quantizing gives, and a hash of the codes."""
    with quantized(bench, plan, with_codes=True) as made:
        return made, hash_of_codes(made.codes)


def interrupt(bench: Bench, plan: Plan = AWQ, after: int = 1) -> None:
    """Quantize, and be interrupted when so many blocks are done."""

    def stop(phase: str, done: int, _: int) -> None:
        if phase.startswith("quantizing") and done == after:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt), quantized(bench, plan, stop, with_codes=True):
        raise AssertionError("it was to be interrupted")


def leftovers(home: Path) -> list[Path]:
    return sorted((home / "calibration").glob(f"{TEMPORARY}*"))


def assert_same(first: tuple[Quantized, str], second: tuple[Quantized, str]) -> None:
    """The same weights, codes, scales that were folded, and choices."""
    assert first[0].fingerprint == second[0].fingerprint
    assert first[1] == second[1]
    assert first[0].layers == second[0].layers
    assert first[0].folded.keys() == second[0].folded.keys()
    for name, scales in first[0].folded.items():
        for own, expected in zip(vars(scales).values(), vars(second[0].folded[name]).values(), strict=True):
            assert (own is None) == (expected is None)
            assert own is None or torch.equal(own, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "memory", "fatal"), [("folded", None, 3), ("folded", 1, 1), ("prefix", 1, 2)])
def test_a_kill_in_the_middle_costs_one_block(
    plan: str, memory: int | None, fatal: int, tmp_path: Path, rounded: list[int]
) -> None:
    """After `kill -9` only the blocks that were not done are quantized, and every bit is that of an unbroken run."""
    most = None if memory is None else least_memory()
    assert finish(start(die_after_blocks, tmp_path, plan, most, fatal)) == [-signal.SIGKILL]
    assert len(leftovers(tmp_path)) == 1
    bench = bundled_bench(tmp_path, most)
    resumed = made_by(bench, PLANS[plan])
    assert rounded == [block.index for block in bench.blocks[fatal:]]
    assert leftovers(tmp_path) == os.listdir(tmp_path / "leases") == []
    assert_same(resumed, made_by(bundled_bench(tmp_path / "whole", None), PLANS[plan]))


def least_memory() -> int:
    """Bytes of everything but the blocks of the bundled model, and of two of these."""
    from objectives.model.loading import ModelPlan, load_model

    module = load_model(ModelPlan(dtype="float32")).module
    layer = sum(parameter.numel() for parameter in module.model.layers[0].parameters())
    whole = sum(parameter.numel() for parameter in module.parameters())
    return 4 * (whole - (len(module.model.layers) - 2) * layer)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_kept_of_a_block_is_all_that_quantizing_changed(
    layout: str, tmp_path: Path, rounded: list[int]
) -> None:
    """Of every layout a block that is put back has the weights, norms, routers, codes and choices it had."""
    model = tiny.model(LAYOUTS[layout]())
    expected = made_by(tiny.bench(model, tmp_path / "whole", allow_partial=True))
    bench = tiny.bench(model, tmp_path, allow_partial=True)
    interrupt(bench)
    rounded.clear()
    assert_same(made_by(bench), expected)
    assert rounded == [1]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "unreadable"])
def test_blocks_that_are_damaged_are_quantized_again(damage: str, tmp_path: Path, rounded: list[int]) -> None:
    """Bytes that are not those that were written are not believed."""
    bench = tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path)
    expected = made_by(bench)
    interrupt(bench)
    (directory,) = leftovers(tmp_path)
    (path,) = directory.glob("block*")
    data = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(bytes([data[0], *data[1:-1], data[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(data[:-9])
    elif damage == "gone":
        path.unlink()
    else:
        (directory / "unfinished.json").write_text("{")
    rounded.clear()
    assert_same(made_by(bench), expected)
    assert rounded == [0, 1]
    assert leftovers(tmp_path) == []


def test_short_quantizations_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that took less than a second is not kept, and an interrupt leaves nothing."""
    monkeypatch.setattr(kept_blocks, "LONG_SECONDS", 1e9)
    interrupt(tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path))
    assert leftovers(tmp_path) == os.listdir(tmp_path / "leases") == []


def test_blocks_that_take_long_to_write_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first one it is known how long that is."""
    monkeypatch.setattr(kept_blocks, "WRITING_SHARE", 1e-9)
    interrupt(tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path), after=2)
    (directory,) = leftovers(tmp_path)
    assert [path.stem for path in directory.glob("block*")] == ["block-000"]


def test_after_a_slow_write_blocks_are_left_out_and_it_is_tried_again(tmp_path: Path) -> None:
    """Writing that took four tenths of a block's time is paid by the next two blocks."""
    bench = tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path)
    block = bench.blocks[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_blocks, "WRITING_SHARE", 0.1)
        with KeptBlocks(bench.model, bench.blocks, bench.calibration.cache, ["plan"], False) as kept:
            kept._wrote = 0.4
            written = []
            for _ in range(3):
                kept.keep(block, QuantizedBlocks(), 1.0)
                written.append(len(leftovers(tmp_path)))
    assert written == [0, 0, 1]


def test_another_plan_does_not_take_the_blocks(tmp_path: Path, rounded: list[int]) -> None:
    """What is kept is that plan's alone, and stays for it."""
    bench = tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path)
    interrupt(bench)
    rounded.clear()
    made_by(bench, Plan.uniform(Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=4)))
    assert rounded == [0, 1]
    assert len(leftovers(tmp_path)) == 1


def test_two_processes_at_one_plan_do_not_disturb_each_other(
    tmp_path: Path, rounded: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one quantizes for itself, and what the first one keeps is whole."""
    monkeypatch.setattr(kept_blocks, "DEAD_SECONDS", 0.1)
    bench = tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path / "home")
    other = tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path / "home")
    with quantized(bench, AWQ, with_codes=True) as first:
        rounded.clear()
        second = made_by(other)
        assert rounded == [0, 1]
        (directory,) = leftovers(tmp_path / "home")
        assert len(list(directory.glob("block*"))) == 2
        assert_same((first, hash_of_codes(first.codes)), second)
    assert "another process is at the same plan" in caplog.text
    assert leftovers(tmp_path / "home") == []


def test_a_process_whose_blocks_were_taken_over_goes_on_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that was suspended until another one removed its files has the same result."""
    bench = tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path / "home")
    expected = made_by(bench)

    def take_over(phase: str, done: int, _: int) -> None:
        if phase.startswith("quantizing") and done == 1:
            (directory,) = leftovers(tmp_path / "home")
            directory.rename(tmp_path / "taken")

    with quantized(bench, AWQ, take_over, with_codes=True) as made:
        assert_same((made, hash_of_codes(made.codes)), expected)
    assert "not kept" in caplog.text


def test_a_disk_without_room_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is written where all blocks would not fit, one line says so, and the trial goes on."""
    bench = tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path)
    expected = made_by(bench)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("storage.files.shutil.disk_usage", lambda _: usage)
    with quantized(bench, AWQ, with_codes=True) as made:
        assert leftovers(tmp_path) == []
        assert_same((made, hash_of_codes(made.codes)), expected)
    assert len([line for line in caplog.messages if "are needed" in line]) == 1


def test_what_nobody_came_back_for_is_removed_after_a_day(tmp_path: Path) -> None:
    """Leftovers of other plans stay for a day, since who made them may go on."""
    cache = TensorCache(Paths(tmp_path))
    for key in ("quantized-old", "quantized-new", "other-old"):
        with suppress(KeyboardInterrupt), cache.passing_entry(key) as entry:
            entry.write("part", {"values": torch.ones(2)})
            entry.record({"blocks": ["part"]})
            raise KeyboardInterrupt
    before = time.time() - kept_blocks.ABANDONED_SECONDS - 1
    for directory in leftovers(tmp_path):
        if "old" in directory.name:
            os.utime(directory, (before, before))
    made_by(tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path))
    assert [cache.is_unfinished(key) for key in ("quantized-old", "quantized-new", "other-old")] == [False, True, True]
