"""Models whose blocks are in memory only while they are used: the same numbers, less memory, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from objectives.bundled.text import MODEL_DIRECTORY
from objectives.calibration.calibration import Calibration
from objectives.calibration.recording import statistics_bytes
from objectives.errors import InputError
from objectives.model.finding import decoder_layers, find_blocks
from objectives.model.loading import Model, ModelPlan, load_model
from objectives.model.streaming import StreamedWeights
from objectives.precision import check_agreement
from objectives.progress import silent
from objectives.trial import Bench, run_trial
from quant.plan import Plan
from quant.setting import Setting
from storage.cache import TensorCache
from storage.errors import ChangedFileError, StorageError
from storage.paths import Paths
from storage.results import ResultStore
from tests.objectives import tiny

LAYOUTS = tiny.LAYOUTS | tiny.MIXTURES
AWQ = Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=3)
TEXT = tiny.sequences([24, 17, 24, 9, 31, 24, 2, 12], seed=1)
SCORED = tiny.sequences([24, 17, 31], seed=2)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directories of random models by layout, each written once."""
    root = tmp_path_factory.mktemp("layouts")

    def written(layout: str) -> Path:
        place = root / layout
        if not place.exists():
            tiny.module(LAYOUTS[layout](), dtype=torch.bfloat16).save_pretrained(place)
            AutoTokenizer.from_pretrained(MODEL_DIRECTORY).save_pretrained(place)
        return place

    return written


def sizes(path: Path, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of everything but the blocks, and of the largest block."""
    module = load_model(ModelPlan(name=str(path))).module
    blocks = [sum(parameter.numel() for parameter in layer.parameters()) for layer in decoder_layers(module)[1]]
    whole = sum(parameter.numel() for parameter in module.parameters())
    return (whole - sum(blocks)) * dtype.itemsize, max(blocks) * dtype.itemsize


def streamed(path: Path, offload: Path, dtype: str = "float32", kept: int = 0) -> Model:
    """The model with as little memory as it can do with, and as many blocks that stay."""
    outside, block = sizes(path, getattr(torch, dtype))
    plan = ModelPlan(name=str(path), dtype=dtype, device_memory=outside + (2 + kept) * block, offload=str(offload))
    model = load_model(plan)
    assert isinstance(model.weights, StreamedWeights)
    return model


def bench(model: Model, home: Path, tight: bool) -> Bench:
    blocks = find_blocks(model.module, allow_partial=True, weights=model.weights)
    most = max(map(statistics_bytes, blocks)) if tight else None
    calibration = Calibration(model, blocks, TEXT, TensorCache(Paths(home)), most)
    return Bench(model=model, blocks=blocks, calibration=calibration)


def absent(model: Model) -> set[str]:
    """The parameters that are not in memory."""
    return {name for name, parameter in model.module.named_parameters() if parameter.is_meta}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_streamed_model_measures_what_the_model_in_memory_does(
    layout: str, stored: Callable[[str], Path], tmp_path: Path
) -> None:
    """Statistics, weights, losses and scores are the same bits on every layout, and no block is in memory after."""
    path = stored(layout)
    whole = load_model(ModelPlan(name=str(path), dtype="float32"))
    parts = streamed(path, tmp_path / "offload")
    assert parts.fingerprint == whole.fingerprint
    first, second = bench(whole, tmp_path / "whole", tight=False), bench(parts, tmp_path / "parts", tight=True)
    results = [run_trial(bench, Plan.uniform(AWQ), SCORED) for bench in (first, second)]
    assert results[0].layers == results[1].layers
    assert results[0].fingerprint == results[1].fingerprint
    for name, values in results[0].score.tensors.items():
        assert torch.equal(values, results[1].score.tensors[name]), name
    for block, other in zip(first.blocks, second.blocks, strict=True):
        own, streamed_means = first.calibration.read(block, 8), second.calibration.read(other, 8)
        for site, means in own.inputs.items():
            assert torch.equal(means.gram, streamed_means.inputs[site].gram)
        assert own.outputs.keys() == streamed_means.outputs.keys()
    inside = {name for name, _ in parts.module.named_parameters() if name.startswith(f"{prefix(parts)}.")}
    assert absent(parts) == inside
    assert not list((tmp_path / "offload").iterdir())


def prefix(model: Model) -> str:
    return decoder_layers(model.module)[0]


@pytest.mark.parametrize("layout", ["llama", "mixtral"])
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_what_a_trial_changed_is_put_back_from_the_files(
    layout: str, kept: int, stored: Callable[[str], Path], tmp_path: Path
) -> None:
    """A second trial, and full precision after it, are what they are without the first, whatever stays in memory."""
    model = streamed(stored(layout), tmp_path, kept=kept)
    assert len(absent(model)) < sum(1 for _ in model.module.named_parameters())
    made = bench(model, tmp_path, tight=False)
    before = run_trial(made, None, SCORED)
    runs = [run_trial(made, Plan.uniform(replace(AWQ, bits=bits)), SCORED) for bits in (4, 3, 4)]
    after = run_trial(made, None, SCORED)
    assert torch.equal(before.score.nll, after.score.nll)
    assert torch.equal(runs[0].score.nll, runs[2].score.nll)
    assert not torch.equal(runs[0].score.nll, runs[1].score.nll)
    assert runs[0].fingerprint == runs[2].fingerprint != runs[1].fingerprint


@pytest.mark.parametrize("kept", [0, 1])
def test_the_check_of_the_number_type_is_the_same(kept: int, stored: Callable[[str], Path], tmp_path: Path) -> None:
    """A streamed 16-bit model is compared with its float32 copy, which is streamed as well."""
    path = stored("llama")
    models = [
        load_model(ModelPlan(name=str(path), dtype="bfloat16")),
        streamed(path, tmp_path, dtype="bfloat16", kept=kept),
    ]
    agreements = [
        check_agreement(
            model,
            find_blocks(model.module, weights=model.weights),
            SCORED,
            ResultStore(tmp_path / str(number)),
            silent,
        )
        for number, model in enumerate(models)
    ]
    assert agreements[0] == agreements[1] is not None


def test_a_block_is_in_memory_while_it_runs_and_no_longer(stored: Callable[[str], Path], tmp_path: Path) -> None:
    """One block at a time has weights, also where a forward pass is given up inside it."""
    model = streamed(stored("llama"), tmp_path)
    layers = decoder_layers(model.module)[1]
    present: list[list[bool]] = []

    def look(*_: object) -> None:
        present.append([not next(layer.parameters()).is_meta for layer in layers])

    def give_up(*_: object) -> None:
        raise InterruptedError

    for layer in layers:
        layer.self_attn.q_proj.register_forward_hook(look)
    ids = torch.randint(2, tiny.VOCABULARY, (1, 8))
    with torch.inference_mode():
        model.module(input_ids=ids)
        layers[1].mlp.register_forward_hook(give_up)
        with pytest.raises(InterruptedError):
            model.module(input_ids=ids)
    assert present == 2 * [[True, False], [False, True]]
    assert all(next(layer.parameters()).is_meta for layer in layers)


def test_what_fits_twice_is_in_memory_and_what_fits_once_has_no_copy(
    stored: Callable[[str], Path], tmp_path: Path
) -> None:
    """The room for weights says what stays; a note says what becomes of the rest."""
    path = stored("llama")
    outside, block = sizes(path, torch.float32)
    total = outside + tiny.LAYERS * block

    def loaded(memory: int) -> Model:
        plan = ModelPlan(name=str(path), dtype="float32", device_memory=memory, offload=str(tmp_path))
        return load_model(plan)

    assert not loaded(2 * total).weights.streamed
    assert loaded(2 * total).notes == ()
    once = loaded(2 * total - 1)
    assert once.weights.streamed
    assert absent(once) == set()
    assert once.notes[0].startswith("all blocks stay in memory, and are put back from their files instead of a copy: ")
    least = loaded(outside + 2 * block)
    assert least.notes[0].startswith("2 of 2 blocks are read from their files whenever they are used: weights take ")
    with pytest.raises(InputError, match=r"needs at least 0\.000 GB for weights on cpu .* use another --device"):
        loaded(outside + 2 * block - 1)


def test_a_file_that_is_written_to_during_a_run_is_refused(stored: Callable[[str], Path], tmp_path: Path) -> None:
    """Weights of two versions never mix: the line names the file."""
    place = tmp_path / "model"
    place.mkdir()
    for file in stored("llama").iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    model = streamed(place, tmp_path / "offload")
    weights = place / "model.safetensors"
    tensors = load_file(weights)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    with weights.open("r+b") as opened:
        opened.write(data)
    assert tensors
    with pytest.raises(ChangedFileError, match=r"model\.safetensors was written to while its weights were in use"):
        run_trial(bench(model, tmp_path, tight=False), None, SCORED)


def test_a_disk_without_room_for_blocks_is_refused(
    stored: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is loaded, with the flag that names another place."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(StorageError, match=r"0 MB free and 0 MB are needed; free space, or give another place with"):
        streamed(stored("llama"), tmp_path)


@pytest.mark.parametrize("layout", ["mixtral", "qwen3-moe", "deepseek-v3"])
@pytest.mark.parametrize("change", ["lost", "added"])
def test_a_checkpoint_with_other_experts_is_refused(
    layout: str, change: str, stored: Callable[[str], Path], tmp_path: Path
) -> None:
    """Missing experts are not made up and others are not left out: the line names them and their number."""
    place = tmp_path / "model"
    place.mkdir()
    for file in stored(layout).iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    tensors: dict[str, Tensor] = load_file(place / "model.safetensors")
    name = next(name for name in tensors if "experts.1." in name)
    if change == "lost":
        del tensors[name]
        expected = r"should have 4 experts by its config\.json and lacks 1 of .* \(first: 1\); get its files again"
    else:
        tensors[name.replace("experts.1.", "experts.4.")] = tensors[name].clone()
        expected = r"should have 4 experts by its config\.json and has, beyond that, 1 of .* \(first: 4\); get "
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=expected):
        load_model(ModelPlan(name=str(place)))
