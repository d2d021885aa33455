"""Experts in files: each by the name that runtimes know, bit by bit what was measured, or refused by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from objectives.errors import InputError, RunError
from objectives.export import tensors
from objectives.export.expert_names import expert_names
from objectives.export.formats import FORMATS, Export, Proof, find_format
from objectives.export.manifest import Manifest
from objectives.export.writing import write_model
from objectives.model.finding import find_blocks
from objectives.progress import silent
from objectives.trial import Bench, quantized
from quant.plan import Plan
from quant.setting import Setting
from tests.objectives import tiny
from tests.objectives.tiny import EXPERTS, MIXTURES

AWQ = Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=5)
TEXT = tiny.sequences([20] * 10, seed=2)
PACKED = [name for name in MIXTURES if name != "gpt-oss"]
NAMES = {
    "mixtral": ("model.layers.1.block_sparse_moe.experts.3", ("w1", "w3", "w2")),
    "qwen3-moe": ("model.layers.1.mlp.experts.3", ("gate_proj", "up_proj", "down_proj")),
    "qwen2-moe": ("model.layers.1.mlp.experts.3", ("gate_proj", "up_proj", "down_proj")),
    "deepseek-v3": ("model.layers.1.mlp.experts.3", ("gate_proj", "up_proj", "down_proj")),
}
ROUTERS = {name: "model.layers.1.mlp.gate" for name in NAMES} | {"mixtral": "model.layers.1.block_sparse_moe.gate"}


def made(mixture: str, directory: Path) -> Bench:
    model = replace(tiny.model(MIXTURES[mixture](), dtype=torch.bfloat16), tokenizer=tiny.complete().tokenizer)
    return tiny.bench(model, directory)


def write(bench: Bench, plan: Plan, target: Path) -> Manifest:
    proof = Proof(text=TEXT, perplexity=None)
    name = "compressed-tensors"
    export = Export(bench=bench, plan=plan, directories={name: target}, proof=proof, card=lambda manifest: "")
    return write_model(export, silent)[name]


def reload(target: Path) -> Any:
    loaded, report = AutoModelForCausalLM.from_pretrained(target, dtype="auto", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    return loaded


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("mixture", PACKED)
def test_packed_experts_come_back_bit_by_bit(mixture: str, tmp_path: Path) -> None:
    """Transformers joins what was written one by one; routers and norms have taken the scales of all experts."""
    bench, plan, target = made(mixture, tmp_path / "home"), Plan.uniform(AWQ), tmp_path / "model"
    before = tiny.state(bench.model.module)
    with quantized(bench, plan):
        expected = tiny.state(bench.model.module)
    manifest = write(bench, plan, target)
    assert tiny.same_bits(expected, tiny.state(reload(target)))
    assert tiny.same_bits(before, tiny.state(bench.model.module))
    # Beyond codes and scales there are two 64-bit numbers for each matrix.
    matrices = sum(len(list(block.linears)) for block in bench.blocks)
    more = 128 * matrices / manifest.size.weights
    assert manifest.stored_bits_per_weight == pytest.approx(manifest.bits_per_weight + more, abs=1e-3)
    assert manifest.proof.unfolded == pytest.approx(manifest.proof.packed, rel=5e-3)


@pytest.mark.usefixtures("same_process")
def test_one_wrong_code_of_one_expert_fails_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensor that holds all of them is named."""
    module_codes = tensors.module_codes

    def wrong(*arguments: Any) -> Any:
        for module, weight in module_codes(*arguments):
            codes = weight.codes.clone()
            if module == "model.layers.1.mlp.experts.3.up_proj":
                codes[3, 5] += 1 if codes[3, 5] < 7 else -1
            yield module, replace(weight, codes=codes)

    monkeypatch.setattr(tensors, "module_codes", wrong)
    bench = made("mixtral", tmp_path / "home")
    with pytest.raises(RunError, match=r"1 of \d+ tensors .* \(first: model\.layers\.1\.mlp\.experts\.gate_up_proj\)"):
        write(bench, Plan.uniform(AWQ), tmp_path / "model")


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("mixture", PACKED)
def test_files_name_experts_as_runtimes_do(mixture: str, tmp_path: Path) -> None:
    """One matrix an expert and a role, under the names of the original checkpoints; routers are not to be unpacked."""
    bench, target = made(mixture, tmp_path / "home"), tmp_path / "model"
    write(bench, Plan.uniform(AWQ), target)
    stored = load_file(target / "model.safetensors")
    place, roles = NAMES[mixture]
    for role, own in zip(roles, ("gate_proj", "up_proj", "down_proj"), strict=True):
        assert stored[f"{place}.{role}.weight_shape"].tolist() == list(
            next(linear.shape for linear in bench.blocks[1].linears if linear.name.endswith(f"experts.3.{own}"))
        )
    assert not any(name.endswith(("experts.gate_up_proj", "experts.down_proj")) for name in stored)
    assert f"{ROUTERS[mixture]}.weight" in stored
    ignored = json.loads((target / "config.json").read_text())["quantization_config"]["ignore"]
    assert {"lm_head", ROUTERS[mixture]} <= set(ignored)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_every_matrix_has_a_name_of_its_own_or_none_has(mixture: str) -> None:
    """As many names as matrices of experts, but for gpt-oss, whose files have them fused."""
    module = tiny.module(MIXTURES[mixture]())
    blocks = find_blocks(module)
    names = expert_names(module, blocks)
    experts = {linear.name for block in blocks for linear in block.linears if linear.expert is not None}
    assert set(names) == (set() if mixture == "gpt-oss" else experts)
    assert len(set(names.values())) == len(names)
    assert len(experts) in (3 * EXPERTS, 6 * EXPERTS)


@pytest.mark.parametrize(
    ("mixture", "fields", "message"),
    [
        ("gpt-oss", {}, r"GptOssForCausalLM has no names in files for its experts one by one, model\.layers\.0\.mlp"),
        ("mixtral", {"symmetric": False}, "does not read the zero points of experts .*; use --symmetric"),
    ],
)
def test_what_transformers_would_not_read_is_refused(
    mixture: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Before anything is computed, in one line with what to do instead."""
    bench = made(mixture, tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        find_format("compressed-tensors").require_holds(Plan.uniform(replace(AWQ, **fields)), bench)
    assert str(caught.value).endswith("write it with --format dense")
    assert "\n" not in str(caught.value)


def test_experts_have_one_scheme_with_everything_else(tmp_path: Path) -> None:
    """Neither attention in other groups than experts is read, nor are experts that stay in 16 bit, some or all."""
    bench = made("mixtral", tmp_path)
    attention = {linear.name for block in bench.blocks for linear in block.linears if linear.expert is None}
    experts = {linear.name for block in bench.blocks for linear in block.linears} - attention
    second = {linear.name for linear in bench.blocks[1].linears if linear.expert is not None}
    coarse, wide = replace(AWQ, group_size=64), replace(AWQ, bits=16)
    for names, setting in ((attention, coarse), (second, wide), (experts, wide)):
        plan = Plan(named=dict.fromkeys(names, setting), others=AWQ)
        with pytest.raises(InputError, match="with one scheme for all Linears, and no experts in 16 bit; give"):
            find_format("compressed-tensors").require_holds(plan, bench)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("dense", "packed", "compressed-tensors")])
def test_formats_that_are_not_written_for_experts_say_so(name: str, tmp_path: Path) -> None:
    """Whatever else they hold."""
    bench = made("mixtral", tmp_path)
    plan = Plan.uniform(replace(AWQ, symmetric=name != "awq"))
    with pytest.raises(InputError, match=r"not written for mixtures of experts; use --format compressed-tensors, or"):
        find_format(name).require_holds(plan, bench)
