"""Calibration is computed once, for whatever sizes, settings and damage there are, and says what was asked for."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from objectives.bundled.text import MODEL_DIRECTORY
from objectives.calibration.calibration import Calibration
from objectives.calibration.carrying import can_begin_at
from objectives.calibration.recording import BlockStatistics, record, statistics_bytes
from objectives.errors import InputError, RunError
from objectives.model.finding import find_blocks
from objectives.model.loading import Model, ModelPlan, load_model
from objectives.model.roles import Block, LinearRole
from objectives.progress import silent
from objectives.scoring import score_all
from objectives.text.sequences import Sequences, TextPlan, prepare_text
from objectives.trial import Bench, TrialResult, quantized, run_trial
from quant.plan import Plan
from quant.setting import Setting
from storage.cache import TensorCache
from storage.errors import DamagedEntryError, StorageError
from storage.paths import Paths
from tests.objectives import tiny

COUNT, LENGTH = 24, 64
SETTING = Setting(n_calib=COUNT, n_grid=3, group_size=64)


@pytest.fixture(scope="module")
def blocks(bundled: Model) -> list[Block]:
    return find_blocks(bundled.module)


@pytest.fixture(scope="module")
def texts(bundled: Model) -> list[Sequences]:
    """Calibration text, the same and a little more of it, and text to score on."""
    plan = TextPlan(source="bundled:docstrings", part="calibration", count=COUNT, length=LENGTH)
    tuning = TextPlan(source="bundled:docstrings", part="tuning", count=8, length=LENGTH)
    return [prepare_text([first, tuning], bundled.tokenizer)[0] for first in (plan, replace(plan, count=40))] + [
        prepare_text([plan, tuning], bundled.tokenizer)[1]
    ]


@pytest.fixture(scope="module")
def text(texts: list[Sequences]) -> Sequences:
    return texts[0]


@pytest.fixture(scope="module")
def filled(bundled: Model, blocks: list[Block], text: Sequences, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose cache holds 16 and 24 samples; tests that change it work on a copy."""
    home = tmp_path_factory.mktemp("filled")
    Calibration(bundled, blocks, text, cache_of(home)).ensure([16, COUNT], silent)
    return home


def cache_of(home: Path) -> TensorCache:
    return TensorCache(Paths(home))


@contextmanager
def reading(model: Model) -> Iterator[list[int]]:
    """How many sequences each forward pass of the backbone reads."""
    counts: list[int] = []

    def hook(_: torch.nn.Module, args: tuple[object, ...], named: dict[str, Tensor]) -> None:
        counts.append(len(named["input_ids"]))

    handle = model.module.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


def count(runs: dict[str, int], name: str, *_: object) -> None:
    runs[name] += 1


def assert_close(found: BlockStatistics, expected: BlockStatistics, tolerance: float) -> None:
    """Same names and token counts; every number within `tolerance` of the largest of its tensor."""
    assert found.inputs.keys() == expected.inputs.keys()
    assert found.outputs.keys() == expected.outputs.keys()
    pairs: list[tuple[str, Any, Any]] = [
        (name, statistics, expected.inputs[name]) for name, statistics in found.inputs.items()
    ]
    pairs += [(name, statistics, expected.outputs[name]) for name, statistics in found.outputs.items()]
    for name, statistics, other in pairs:
        assert statistics.tokens == other.tokens
        for field in fields(statistics):
            values, wanted = (torch.as_tensor(getattr(each, field.name)).double() for each in (statistics, other))
            assert values.shape == wanted.shape
            error = float((values - wanted).abs().max() / wanted.abs().max())
            assert error <= tolerance, f"{name}.{field.name} is off by {error:.1e}"


# Sizes


@pytest.mark.parametrize("size", [20, *(pytest.param(size, marks=pytest.mark.slow) for size in (16, 24, 7))])
def test_prefixes_merged_from_increments_equal_direct_recording(
    size: int, bundled: Model, blocks: list[Block], text: Sequences, tmp_path: Path
) -> None:
    """Any size, on a boundary or off it, gives the statistics of exactly its first samples."""
    calibration = Calibration(bundled, blocks, text, cache_of(tmp_path))
    calibration.ensure([16, 24, size], silent)
    direct = record(bundled.module, blocks, text[:size], lambda _: None)
    for block, expected in zip(blocks, direct, strict=True):
        assert_close(calibration.read(block, size), expected, 1e-5)


def test_a_later_size_only_computes_what_is_missing(
    bundled: Model, blocks: list[Block], texts: list[Sequences], tmp_path: Path
) -> None:
    """Sizes share their prefixes, even when the text itself has grown since."""
    first, longer, _ = texts
    steps = [(first, [16], 16), (first, [24], 8), (first, [20], 4), (first, [16, 20, 24], 0), (longer, [32, 40], 24)]
    for text, sizes, samples in steps:
        with reading(bundled) as counts:
            computed = Calibration(bundled, blocks, text, cache_of(tmp_path)).ensure(sizes, silent)
        assert computed == sum(counts) == samples


def test_the_larger_sizes_of_one_request_are_not_read_twice(
    bundled: Model, blocks: list[Block], text: Sequences, tmp_path: Path
) -> None:
    """Sizes asked for together, in any order and repeatedly, cost as many samples as the largest."""
    with reading(bundled) as counts:
        assert Calibration(bundled, blocks, text, cache_of(tmp_path)).ensure([24, 16, 24], silent) == 24
    assert sum(counts) == 24


@pytest.mark.parametrize("size", [0, -1, COUNT + 1])
def test_a_size_without_text_is_refused(
    size: int, bundled: Model, blocks: list[Block], text: Sequences, tmp_path: Path
) -> None:
    """More samples than there are, or none, are refused by number before anything is written."""
    with pytest.raises(
        InputError, match=rf"^n_calib {size} is outside the 1\.\.{COUNT} samples of bundled:docstrings$"
    ):
        Calibration(bundled, blocks, text, cache_of(tmp_path)).ensure([16, size], silent)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("protocol", ["documents", "packed"])
def test_statistics_equal_those_of_one_sequence_at_a_time(protocol: Any, bundled: Model, tmp_path: Path) -> None:
    """Neither padding nor batches change a number: every token counts once, and padding never."""
    file = tmp_path / "paragraphs.txt"
    file.write_text("\n\n".join(sorted(topics.values())))
    plan = TextPlan(source=str(file), part="calibration", count=12, length=160, protocol=protocol)
    [text] = prepare_text([plan], bundled.tokenizer)
    lengths = set(map(len, text.ids))
    assert len(lengths) > 4 if protocol == "documents" else lengths == {160}
    first, *_, last = find_blocks(bundled.module)
    calibration = Calibration(bundled, [first, last], text, cache_of(tmp_path))
    calibration.ensure([12], silent)
    for block in (first, last):
        assert_close(calibration.read(block, 12), one_by_one(bundled, block, text.ids), 1e-4)


def one_by_one(model: Model, block: Block, sequences: Sequence[Tensor]) -> BlockStatistics:
    """The definitions of the statistics, in float64 over all rows at once, from unpadded sequences of their own."""
    seen: dict[str, list[Tensor]] = {}

    def keep(linear: LinearRole) -> RemovableHandle:
        def hook(_: torch.nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            seen.setdefault(f"{linear.role} in", []).append(args[0][0].double())
            seen.setdefault(f"{linear.role} out", []).append(output[0].double())

        return linear.module.register_forward_hook(hook)

    with ExitStack() as stack, torch.no_grad():
        for linear in block.linears:
            stack.callback(keep(linear).remove)
        for ids in sequences:
            model.module(ids[None])
    rows = {name: torch.cat(parts) for name, parts in seen.items()}
    tokens = sum(map(len, sequences))
    activated = torch.nn.functional.silu
    structural = {
        "gate": activated(rows["gate out"]),
        "up": activated(rows["gate out"]) * rows["up out"],
    }
    inputs, outputs = {}, {}
    for site in block.sites:
        x = rows[f"{site.linears[0].role} in"]
        inputs[site.name] = SimpleNamespace(
            tokens=tokens, gram=x.T @ x / tokens, magnitude=x.abs().mean(0), mean=x.mean(0)
        )
        for linear in site.linears:
            z = rows[f"{linear.role} out"]
            outputs[linear.name] = SimpleNamespace(
                tokens=tokens,
                mean=z.mean(0),
                square=(z**2).mean(0),
                magnitude=z.abs().mean(0),
                activated=(activated(z) if site.kind == "mlp" else z).abs().mean(0),
                structural=structural.get(linear.role, z).abs().mean(0),
            )
    return BlockStatistics(inputs=inputs, outputs=outputs)  # type: ignore[arg-type]


# Memory and disk


def test_block_by_block_gives_the_same_statistics(
    bundled: Model, blocks: list[Block], text: Sequences, filled: Path, tmp_path: Path
) -> None:
    """Little memory costs passes over the text, and changes neither statistics nor progress; each runs its blocks."""
    reports: list[tuple[str, int, int]] = []
    tight = Calibration(bundled, blocks, text, cache_of(tmp_path), max_memory=2 * statistics_bytes(blocks[0]))
    runs = dict.fromkeys((block.name for block in blocks), 0)
    handles = [
        bundled.module.get_submodule(name).input_layernorm.register_forward_hook(partial(count, runs, name))
        for name in runs
    ]
    assert tight.ensure([COUNT], lambda *step: reports.append(step)) == COUNT
    for handle in handles:
        handle.remove()
    passes = len(blocks) // 2
    # Once for all sequences of a step, and a few tokens to see whether the model can begin at a block.
    assert set(runs.values()) == {times * len(tight.steps_to(COUNT)) for times in (3, 4)}
    assert reports[-1] == (f"calibrating on samples 17-{COUNT}", 8 * passes, 8 * passes)
    roomy = Calibration(bundled, blocks, text, cache_of(filled))
    for block in blocks:
        own, expected = tight.read(block, COUNT), roomy.read(block, COUNT)
        for site, means in expected.inputs.items():
            assert torch.equal(own.inputs[site].gram, means.gram)
        for linear, seen in expected.outputs.items():
            assert torch.equal(own.outputs[linear].square, seen.square)


def test_a_model_that_cannot_begin_at_a_block_is_run_from_its_beginning(text: Sequences, tmp_path: Path) -> None:
    """A block that reads more than the one before it gives has the same statistics in several passes, too."""
    made = tiny.model(tiny.LAYOUTS["llama"]())
    first, second = made.module.model.layers
    seen: list[Tensor] = []
    first.mlp.register_forward_hook(lambda _, __, output: seen.append(output))
    # Its input has something of the first block's MLP, as blocks have that share keys and values.
    second.self_attn.q_proj.register_forward_pre_hook(lambda _, args: (args[0] + seen[-1],))
    blocks = find_blocks(made.module)
    read = tiny.sequences([24, 17, 24], seed=1)
    names = [block.name for block in blocks]
    assert not can_begin_at(made.module, names, [1])
    assert can_begin_at(tiny.model(tiny.LAYOUTS["llama"]()).module, names, [1])
    calibrations = [
        Calibration(made, blocks, read, cache_of(tmp_path / str(most)), most)
        for most in (statistics_bytes(blocks[0]), None)
    ]
    for calibration in calibrations:
        calibration.ensure([3], silent)
    own, expected = (calibration.read(blocks[1], 3) for calibration in calibrations)
    for site, means in expected.inputs.items():
        assert torch.equal(own.inputs[site].gram, means.gram)


def test_a_block_that_exceeds_the_memory_alone_is_refused(
    bundled: Model, blocks: list[Block], text: Sequences, tmp_path: Path
) -> None:
    """One line names the block, both numbers and the remedy, before the model reads anything."""
    tight = Calibration(bundled, blocks, text, cache_of(tmp_path), max_memory=statistics_bytes(blocks[0]) - 1)
    with reading(bundled) as counts, pytest.raises(RunError) as caught:
        tight.ensure([COUNT], silent)
    assert re.fullmatch(
        r"the statistics of model\.layers\.0 take 0\.0\d GB and 0\.0\d GB are allowed; raise --max-memory .*",
        str(caught.value),
    )
    assert counts == []
    assert not list(tmp_path.glob("calibration/*"))


def test_a_disk_without_room_is_refused_in_advance(
    bundled: Model, blocks: list[Block], text: Sequences, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics that will not fit are not computed; what is asked for is what an entry takes."""
    taken = max(entry.size for entry in cache_of(filled).entries())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(0.9 * taken)))
    calibration = Calibration(bundled, blocks, text, cache_of(tmp_path))
    with reading(bundled) as counts, pytest.raises(StorageError, match=r"MB are needed; free space with `cache rm`"):
        calibration.ensure([COUNT], silent)
    assert counts == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * taken))
    assert calibration.ensure([16], silent) == 16


# Keys


def test_a_warm_cache_serves_every_setting_without_a_forward_pass(text: Sequences, filled: Path) -> None:
    """A model loaded afresh reads nothing, whatever the trial's parameters and calibration size."""
    model = load_model(ModelPlan(dtype="float32"))
    found = find_blocks(model.module)
    bench = Bench(model=model, blocks=found, calibration=Calibration(model, found, text, cache_of(filled)))
    settings = [
        SETTING,
        Setting(n_calib=16, beta=0.1, tau=0.3, n_grid=5, group_size=128),
        Setting(n_calib=COUNT, beta=1.0, tau=4.0, n_grid=2, group_size=32, symmetric=False, scales="linear"),
        Setting(n_calib=16, method="gw-awq", n_grid=2, group_size=256, placement="structural"),
    ]
    with reading(model) as counts:
        for setting in settings:
            with quantized(bench, Plan.uniform(setting)) as made:
                assert len(made.layers) == sum(len(list(block.linears)) for block in found)
        assert counts == []
        # The counter itself works.
        model.module(text.ids[0][None])
        assert counts == [1]


def keys(model: Model, text: Sequences, home: Path) -> list[str]:
    calibration = Calibration(model, find_blocks(model.module), text, cache_of(home))
    return [step.key for step in calibration.steps_to(COUNT)]


def test_the_same_model_elsewhere_has_the_same_keys(bundled: Model, text: Sequences, tmp_path: Path) -> None:
    """Where a model lies and what it is called does not matter, only what it computes."""
    shutil.copytree(MODEL_DIRECTORY, tmp_path / "copy")
    copy = load_model(ModelPlan(name=str(tmp_path / "copy"), dtype="float32"))
    assert keys(copy, text, tmp_path) == keys(bundled, text, tmp_path)


@pytest.mark.parametrize("change", ["weight", "configuration", "dtype"])
def test_a_different_model_has_other_keys(change: str, bundled: Model, text: Sequences, tmp_path: Path) -> None:
    """One changed weight, one changed constant, or another number type is another model."""
    directory = tmp_path / "changed"
    shutil.copytree(MODEL_DIRECTORY, directory)
    if change == "weight":
        weights = load_file(directory / "model.safetensors")
        name = next(name for name in weights if "down_proj" in name)
        weights[name][3, 5] += 0.5
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    if change == "configuration":
        config = json.loads((directory / "config.json").read_text())
        config["rms_norm_eps"] *= 2
        (directory / "config.json").write_text(json.dumps(config))
    dtype = "bfloat16" if change == "dtype" else "float32"
    changed = load_model(ModelPlan(name=str(directory), dtype=dtype))
    assert set(keys(changed, text, tmp_path)).isdisjoint(keys(bundled, text, tmp_path))


def test_other_text_has_other_keys(bundled: Model, text: Sequences, tmp_path: Path) -> None:
    """One changed token, another order or another length is another text, from the size on that has it."""
    original = keys(bundled, text, tmp_path)
    token = [ids.clone() for ids in text.ids]
    token[20][-1] += 1
    assert [
        a == b for a, b in zip(keys(bundled, replace(text, ids=tuple(token)), tmp_path), original, strict=True)
    ] == [
        True,
        False,
    ]
    swapped = (text.ids[1], text.ids[0], *text.ids[2:])
    assert keys(bundled, replace(text, ids=swapped), tmp_path)[0] != original[0]
    shorter = replace(text, ids=tuple(ids[:-1] for ids in text.ids), scored=tuple(s[:-1] for s in text.scored))
    assert set(keys(bundled, shorter, tmp_path)).isdisjoint(original)
    assert keys(bundled, replace(text, source="elsewhere"), tmp_path) == original


# Damage


@pytest.fixture
def bench(bundled: Model, blocks: list[Block], text: Sequences, filled: Path, tmp_path: Path) -> Bench:
    """A bench on a filled cache of its own, in `tmp_path`."""
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    return Bench(model=bundled, blocks=blocks, calibration=Calibration(bundled, blocks, text, cache_of(tmp_path)))


@pytest.fixture(scope="module")
def undamaged(bundled: Model, blocks: list[Block], texts: list[Sequences], filled: Path) -> TrialResult:
    """What a trial measures when nothing happens to it."""
    calibration = Calibration(bundled, blocks, texts[0], cache_of(filled))
    return run_trial(Bench(model=bundled, blocks=blocks, calibration=calibration), Plan.uniform(SETTING), texts[2])


def assert_same_trial(found: TrialResult, expected: TrialResult) -> None:
    assert found.outcome == expected.outcome == "complete"
    assert found.layers == expected.layers
    assert found.score is not None
    assert expected.score is not None
    assert torch.equal(found.score.nll, expected.score.nll)


@contextmanager
def weights_kept(model: Model) -> Iterator[None]:
    """The model's weights after the block are bit for bit those before it."""
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    yield
    after = model.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("name", ["block-003.safetensors", "manifest.json"])
def test_damage_met_in_the_middle_of_a_trial_is_named_and_repaired(
    name: str,
    bench: Bench,
    texts: list[Sequences],
    undamaged: TrialResult,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The damaged entry alone is computed again, from restored weights, and the trial measures what it would have."""
    second = bench.calibration.first(COUNT)
    file = tmp_path / "calibration" / second.key / name
    whole = file.read_bytes()
    file.write_bytes(whole[:200] + bytes([whole[200] ^ 0x10]) + whole[201:])
    with weights_kept(bench.model), reading(bench.model) as counts:
        result = run_trial(bench, Plan.uniform(SETTING), texts[2])
    assert_same_trial(result, undamaged)
    assert sum(counts) == second.added + scored_by(bench.model, texts[2])
    [warning] = [entry.getMessage() for entry in caplog.records if entry.name == "objectives.calibration.calibration"]
    assert str(file) in warning
    assert "computing it again" in warning
    assert "\n" not in warning
    assert file.read_bytes() == whole


def scored_by(model: Model, text: Sequences) -> int:
    """How many sequences scoring reads, its trial of the head included."""
    with reading(model) as counts:
        score_all(model.module, text, "scoring", silent)
    return sum(counts)


def test_an_entry_removed_in_the_middle_of_a_trial_is_computed_again(
    bench: Bench, texts: list[Sequences], undamaged: TrialResult, tmp_path: Path
) -> None:
    """Someone's `cache rm` costs a running trial the time of calibration, nothing else."""
    removed = []

    def remove_while_quantizing(phase: str, done: int, total: int) -> None:
        if phase.startswith("quantizing") and not removed:
            removed.append(bench.calibration.first(COUNT).key)
            cache_of(tmp_path).remove(removed[0])

    with weights_kept(bench.model):
        result = run_trial(bench, Plan.uniform(SETTING), texts[2], progress=remove_while_quantizing)
    assert removed[0] in cache_of(tmp_path)
    assert_same_trial(result, undamaged)


# It has scored full precision, which then is not counted here.
@pytest.mark.usefixtures("undamaged")
def test_a_disk_that_damages_the_same_entry_twice_ends_the_trial(
    bench: Bench, texts: list[Sequences], tmp_path: Path
) -> None:
    """A failing disk is reported by the name of the file instead of being fed for ever."""
    second = bench.calibration.first(COUNT)
    file = tmp_path / "calibration" / second.key / "block-004.safetensors"

    def damage_while_quantizing(phase: str, done: int, total: int) -> None:
        if phase.startswith("quantizing"):
            file.write_bytes(b"")

    with (
        weights_kept(bench.model),
        reading(bench.model) as counts,
        pytest.raises(DamagedEntryError, match=re.escape(str(file))),
    ):
        run_trial(bench, Plan.uniform(SETTING), texts[2], progress=damage_while_quantizing)
    assert sum(counts) == second.added


def test_damage_that_another_process_has_repaired_meanwhile_is_no_error(bench: Bench, tmp_path: Path) -> None:
    """Two processes that meet the same damage do not stumble over each other's repair."""
    step = bench.calibration.first(COUNT)
    cache_of(tmp_path).remove(step.key)
    bench.calibration.discard_once(DamagedEntryError(step.key, "damaged"), set())
    assert bench.calibration.ensure([COUNT], silent) == step.added


def test_damage_of_the_entry_that_a_larger_one_is_computed_from_is_repaired(
    bench: Bench, blocks: list[Block], tmp_path: Path
) -> None:
    """Both are computed again, once, and are what they were; a smaller one that nobody needs is not."""
    before, step = bench.calibration.steps_to(COUNT)
    expected = bench.calibration.read(blocks[-1], COUNT)
    cache_of(tmp_path).remove(step.key)
    (tmp_path / "calibration" / before.key / "block-002.safetensors").write_bytes(b"")
    assert bench.calibration.ensure([COUNT], silent) == COUNT
    assert_close(bench.calibration.read(blocks[-1], COUNT), expected, 0.0)
    cache_of(tmp_path).remove(before.key)
    assert bench.calibration.ensure([COUNT], silent) == 0
    assert before.key not in cache_of(tmp_path)


def test_a_trial_reads_one_entry_whatever_its_size(bench: Bench, blocks: list[Block], tmp_path: Path) -> None:
    """What smaller sizes were is no part of it any more."""
    before, _ = bench.calibration.steps_to(COUNT)
    cache_of(tmp_path).remove(before.key)
    assert bench.calibration.read(blocks[0], COUNT).inputs
