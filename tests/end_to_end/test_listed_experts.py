"""A mixture whose experts are a list of modules, with code of its own, from a directory to a packed and proven one."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from objectives.bundled.text import MODEL_DIRECTORY
from tests.commands import printed, refusal
from tests.objectives import listed, tiny

TEXT = ("--eval-data", "bundled:docstrings", "--seq-len", "32", "--dtype", "float32", "--eval-samples", "8")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random one with the bundled tokenizer, its code beside its weights."""
    directory = tmp_path_factory.mktemp("listed")
    config = listed.ListedConfig(**{**tiny.GROUPED, "vocab_size": 4096}, num_experts=tiny.EXPERTS)
    module = listed.ListedForCausalLM(config)
    module.save_pretrained(directory)
    AutoTokenizer.from_pretrained(MODEL_DIRECTORY).save_pretrained(directory)
    (directory / "listed.py").write_text(Path(listed.__file__).read_text())
    written = json.loads((directory / "config.json").read_text())
    written["auto_map"] = {
        "AutoConfig": "listed.ListedConfig",
        "AutoModelForCausalLM": "listed.ListedForCausalLM",
    }
    (directory / "config.json").write_text(json.dumps(written))
    return str(directory)


@pytest.mark.slow
def test_a_list_of_experts_is_quantized_packed_and_proven(
    mixture: str, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh process that trusts the code scores the directory as it was measured; routers stay in 16 bit."""
    monkeypatch.setenv("PRAQTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    target = tmp_path / "written"
    flags = ("--model", mixture, "--trust-remote-code", *TEXT, "--quiet", "--n-calib", "8")
    recipe = ("--method", "gw-awq+range", "--symmetric", "--group-size", "32", "--format", "compressed-tensors")
    manifest = printed(capsys, "quantize", *flags, *recipe, "--output-dir", str(target))
    proof = manifest["proof"]
    assert proof["packed"] == pytest.approx(proof["measured"], rel=1e-4)
    names = {layer["name"] for layer in manifest["layers"]}
    assert "model.layers.1.mlp.experts.3.down_proj" in names
    stored = load_file(target / "model.safetensors")
    assert "model.layers.0.mlp.gate.weight" in stored
    assert "model.layers.0.mlp.experts.2.up_proj.weight_packed" in stored


@pytest.mark.slow
def test_what_a_list_of_experts_cannot_do_is_refused(
    mixture: str, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Formats that know no experts, and tokens that an expert is not sent, in one line each."""
    monkeypatch.setenv("PRAQTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    flags = ("--model", mixture, "--trust-remote-code", *TEXT, "--quiet", "--n-calib", "8", "--method", "rtn")
    gptq = ("--format", "gptq", "--symmetric", "--group-size", "32", "--output-dir", str(tmp_path / "w"))
    line = refusal(capsys, "quantize", *flags, *gptq)
    assert "gptq is not written for mixtures of experts; use --format compressed-tensors" in line
    line = refusal(capsys, "evaluate", *flags, "--route-all")
    assert "--route-all is for experts that one module computes" in line
    assert not (tmp_path / "w").exists()
