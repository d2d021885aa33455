"""Checkpoints that cannot be quantized are refused by the command line: one line, exit code 2, nothing written."""

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import cli
from objectives.bundled.text import MODEL_DIRECTORY
from objectives.calibration import calibration

BLOCK = 128
TIGHT = ["--device-memory", "0.011"]
SMALL = ["--dtype", "float32", "--seq-len", "32", "--eval-samples", "4", "--n-calib", "4"]

Packing = Callable[[str, Tensor], dict[str, Tensor]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model."""
    return Path(shutil.copytree(MODEL_DIRECTORY, tmp_path / "model"))


def fp8(name: str, weight: Tensor) -> dict[str, Tensor]:
    """Eight-bit floats with a scale per block, as DeepSeek-V3 has them."""
    blocks = [-(-size // BLOCK) for size in weight.shape]
    return {f"{name}.weight": weight.to(torch.float8_e4m3fn), f"{name}.weight_scale_inv": torch.ones(*blocks)}


def gptq(name: str, weight: Tensor) -> dict[str, Tensor]:
    """Codes along the inputs, eight in an integer."""
    outputs, inputs = weight.shape
    return {
        f"{name}.qweight": torch.zeros(inputs // 8, outputs, dtype=torch.int32),
        f"{name}.qzeros": torch.zeros(inputs // 64, outputs // 8, dtype=torch.int32),
        f"{name}.scales": torch.ones(inputs // 64, outputs, dtype=torch.float16),
        f"{name}.g_idx": torch.arange(inputs, dtype=torch.int32) // 64,
    }


def awq(name: str, weight: Tensor) -> dict[str, Tensor]:
    """Codes along the outputs, eight in an integer."""
    outputs, inputs = weight.shape
    return {
        f"{name}.qweight": torch.zeros(inputs, outputs // 8, dtype=torch.int32),
        f"{name}.qzeros": torch.zeros(inputs // 64, outputs // 8, dtype=torch.int32),
        f"{name}.scales": torch.ones(inputs // 64, outputs, dtype=torch.float16),
    }


def bitsandbytes(name: str, weight: Tensor) -> dict[str, Tensor]:
    """Pairs of four-bit codes in a column of bytes, and what they mean."""
    return {
        f"{name}.weight": torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8),
        f"{name}.weight.absmax": torch.zeros(weight.numel() // 64, dtype=torch.uint8),
        f"{name}.weight.quant_map": torch.zeros(16),
        f"{name}.weight.quant_state.bitsandbytes__nf4": torch.zeros(8, dtype=torch.uint8),
    }


SAID: dict[str, tuple[Packing, dict[str, object]]] = {
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}),
    "bitsandbytes": (bitsandbytes, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
}


def pack(model: Path, packing: Packing) -> None:
    """Store the Linears of a model's blocks in another way."""
    stored: dict[str, Tensor] = {}
    for key, tensor in load_file(model / "model.safetensors").items():
        name, _, leaf = key.rpartition(".")
        stored |= packing(name, tensor) if leaf == "weight" and "_proj" in name else {key: tensor}
    save_file(stored, model / "model.safetensors", metadata={"format": "pt"})


def refused(capsys: Any, model: Path, tmp_path: Path, *flags: str) -> tuple[int, str]:
    """The exit code of `quantize`, and the only line that it prints."""
    command = ["quantize", "--method", "rtn", "--model", str(model), "--out", str(tmp_path / "out"), "--quiet"]
    code = cli.main([*command, *SMALL, "--cache", str(tmp_path / "cache"), *flags])
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert not (tmp_path / "out").exists()
    return code, line


@pytest.fixture(autouse=True)
def _without_bars() -> Iterator[None]:
    """A command switches the bars of transformers off before it is imported, which here has happened long ago."""
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.mark.slow
@pytest.mark.parametrize("memory", [[], TIGHT], ids=["in memory", "streamed"])
@pytest.mark.parametrize("method", SAID)
def test_a_checkpoint_of_codes_is_named_whether_it_says_so_or_not(
    method: str, memory: list[str], capsys: Any, model: Path, tmp_path: Path
) -> None:
    """FP8 with scales per block, GPTQ, AWQ and bitsandbytes, with their configuration and without it."""
    packing, said = SAID[method]
    pack(model, packing)
    code, line = refused(capsys, model, tmp_path, *memory)
    assert code == 2
    assert "config.json" in line
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    code, line = refused(capsys, model, tmp_path, *memory)
    assert code == 2
    assert f"is already quantized ({method}" in line
    assert "give the original" in line
    assert not list((tmp_path / "cache").glob("calibration/*"))


@pytest.mark.slow
def test_pickled_weights_are_not_read(capsys: Any, model: Path, tmp_path: Path) -> None:
    """A checkpoint of `.bin` files alone is refused without opening them."""
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"not a pickle")
    code, line = refused(capsys, model, tmp_path)
    assert code == 2
    assert "has pickled weights (.bin, .pt), which are not read" in line
    assert "save it with transformers once more" in line


@pytest.mark.slow
def test_a_device_too_small_for_one_block_is_refused_with_numbers(capsys: Any, model: Path, tmp_path: Path) -> None:
    """The line says what is needed and what is there."""
    code, line = refused(capsys, model, tmp_path, "--device-memory", "0.005")
    assert code == 2
    assert "needs at least 0.010 GB for weights on cpu in torch.float32" in line
    assert "0.005 GB are available" in line


@pytest.mark.slow
def test_a_disk_too_small_for_the_blocks_is_refused_before_anything_is_read(
    capsys: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What blocks take is asked for in advance, of the directory that --offload names; that is a failure, not usage."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 0, 10**6))
    place = tmp_path / "small"
    code, line = refused(capsys, model, tmp_path, *TIGHT, "--offload", str(place))
    assert code == 1
    assert f"{place} has 1 MB free and 1" in line
    assert "or give another place with --offload" in line
    assert not list(place.iterdir())


@pytest.mark.slow
def test_weights_that_change_under_a_run_end_it(
    capsys: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is written to while its blocks are streamed is named, and nothing is kept of what was read of it."""
    record = calibration.record

    def meanwhile(*arguments: Any) -> Any:
        os.utime(model / "model.safetensors")
        yield from record(*arguments)

    monkeypatch.setattr(calibration, "record", meanwhile)
    code, line = refused(capsys, model, tmp_path, *TIGHT, "--eval-data", "bundled:docstrings")
    assert code == 1
    assert f"{model / 'model.safetensors'} was written to while its weights were in use" in line
    assert not list((tmp_path / "cache").glob("calibration/*"))
