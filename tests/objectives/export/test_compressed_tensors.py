"""A packed model is the model that was measured: to the last bit of every weight, in every layout, or not there."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ArceeConfig, AutoModelForCausalLM, AutoTokenizer

import objectives.export.compressed_tensors
from objectives.errors import InputError, RunError
from objectives.export.compressed_tensors import CompressedTensors
from objectives.export.formats import Export, Proof
from objectives.export.manifest import Manifest
from objectives.export.reading import TRANSFORMERS
from objectives.export.rescoring import rescore
from objectives.export.writing import write_model
from objectives.model import commuting
from objectives.model.loading import DTYPES, ModelPlan, load_model
from objectives.model.provenance import RECORD, Provenance, read_provenance
from objectives.model.sites import find_sites
from objectives.progress import silent
from objectives.quantization import model_size
from objectives.scoring import score_all
from objectives.trial import Bench, quantized, run_trial
from quant.methods import METHODS
from quant.plan import Plan
from quant.setting import Setting
from storage.errors import StorageError
from storage.model_directory import tensor_bytes
from storage.typed_json import decode
from tests.objectives import tiny

AWQ = Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=5)
NAME = "compressed-tensors"
TEXT = tiny.sequences([20] * 10, seed=2)
GRIDS = {
    f"{'symmetric' if symmetric else 'asymmetric'}-{size or 'channel'}": Setting(
        method="gw-awq" if size else "awq", group_size=size or 128, symmetric=symmetric, n_calib=8, n_grid=5
    )
    for symmetric in (True, False)
    for size in (32, 64, None)
}
STACKS = {
    f"{'symmetric' if symmetric else 'asymmetric'} {search} {rounding}": replace(
        AWQ, symmetric=symmetric, range_search=search, rounding=rounding
    )
    for symmetric in (True, False)
    for search in ("none", "diagonal", "block")
    for rounding in ("nearest", "gptq")
    if (search, rounding) != ("none", "nearest")
}
# Scales of both signs.
STACKS["full range"] = replace(AWQ, full_range=True)
STACKS["full range diagonal gptq"] = replace(AWQ, full_range=True, range_search="diagonal", rounding="gptq")
# Every range and rounding, and both grids, once.
QUICK = ("symmetric none gptq", "symmetric block nearest", "asymmetric diagonal gptq", *list(STACKS)[-2:])
Stored = dict[str, Tensor]


made = partial(tiny.complete, dtype=torch.bfloat16)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return tiny.bench(made(), tmp_path / "home")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "mine"


def card(manifest: Manifest) -> str:
    return f"# {manifest.method}"


def export(bench: Bench, plan: Plan, target: Path, perplexity: float | None = None) -> Export:
    proof = Proof(text=TEXT, perplexity=perplexity)
    return Export(bench=bench, plan=plan, directories={NAME: target}, proof=proof, card=card)


def write(bench: Bench, setting: Setting, target: Path, perplexity: float | None = None) -> Manifest:
    return write_model(export(bench, Plan.uniform(setting), target, perplexity), silent)[NAME]


def measured_state(bench: Bench, setting: Setting) -> Stored:
    """The weights that a trial scores."""
    with quantized(bench, Plan.uniform(setting)):
        return tiny.state(bench.model.module)


def reload(target: Path, dtype: str | torch.dtype = "auto") -> Any:
    loaded, report = AutoModelForCausalLM.from_pretrained(target, dtype=dtype, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    return loaded


# What is written


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("symmetric", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_every_layout_comes_back_bit_by_bit(layout: str, symmetric: bool, tmp_path: Path, target: Path) -> None:
    """Fused projections, biases, folded norms and unfoldable inputs: every weight is the one that was measured."""
    bench = tiny.bench(made(layout), tmp_path / "home")
    setting = replace(AWQ, symmetric=symmetric)
    before = tiny.state(bench.model.module)
    expected = measured_state(bench, setting)
    manifest = write(bench, setting, target)
    assert tiny.same_bits(expected, tiny.state(reload(target)))
    assert tiny.same_bits(before, tiny.state(bench.model.module))
    assert manifest.proof.packed == pytest.approx(
        run_trial(bench, Plan.uniform(setting), TEXT).score.perplexity, rel=1e-6
    )
    assert manifest.proof.unfolded == pytest.approx(manifest.proof.packed, rel=5e-3)


@pytest.mark.usefixtures("same_process")
def test_a_broken_fold_cannot_prove_itself(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a scale folded through a squared ReLU, trial and directory would agree, and both would be broken."""
    monkeypatch.setattr(commuting, "same", lambda before, after: True)
    model = tiny.model(ArceeConfig(**tiny.GROUPED), dtype=torch.bfloat16)
    model = replace(model, tokenizer=tiny.complete().tokenizer)
    # As sure of itself as a model that was trained.
    model.module.lm_head.weight.mul_(20)
    for layer in model.module.model.layers:
        layer.mlp.up_proj.weight.mul_(8)
    with pytest.raises(RunError, match="a scale was folded through what changes it; nothing was written"):
        write(tiny.bench(model, tmp_path / "home"), AWQ, target)
    assert not target.exists()


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in STACKS]
)
def test_every_stack_of_ingredients_comes_back_bit_by_bit(name: str, bench: Bench, target: Path) -> None:
    """Searched ranges and GPTQ's codes, on both grids; and they are not those of the method alone."""
    setting = STACKS[name]
    expected = measured_state(bench, setting)
    manifest = write(bench, setting, target)
    assert tiny.same_bits(expected, tiny.state(reload(target)))
    plain = measured_state(bench, replace(AWQ, symmetric=setting.symmetric))
    assert not tiny.same_bits(expected, plain)
    assert manifest.parameters["range_search"] == setting.range_search
    assert manifest.parameters["rounding"] == setting.rounding
    stored = load_file(target / "model.safetensors")
    scales = [tensor for name, tensor in stored.items() if name.endswith(".weight_scale")]
    assert any(bool((scale < 0).any()) for scale in scales) is setting.full_range
    assert all(layer.final_loss <= layer.loss for layer in manifest.layers)


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(
    "dtype", [name if name == "bfloat16" else pytest.param(name, marks=pytest.mark.slow) for name in DTYPES]
)
def test_every_grid_comes_back_bit_by_bit(name: str, dtype: str, tmp_path: Path, target: Path) -> None:
    """Symmetric and asymmetric, groups and one scale per row, in every type; the bits in the file are those counted."""
    bench = tiny.bench(made(dtype=DTYPES[dtype]), tmp_path / "home")
    expected = measured_state(bench, GRIDS[name])
    manifest = write(bench, GRIDS[name], target)
    assert tiny.same_bits(expected, tiny.state(reload(target)))
    # Beyond the codes, scales and zero points there are two 64-bit numbers for each of 14 matrices.
    assert 0 < manifest.stored_bits_per_weight - manifest.bits_per_weight < 0.05


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_model_computed_in_float32_is_stored_as_its_files_were(symmetric: bool, tmp_path: Path, target: Path) -> None:
    """Scales, norms and embeddings are bfloat16 as before, and computed in float32 again every weight is the same."""
    wide = made(dtype=torch.float32)
    for parameter in wide.module.parameters():
        parameter.copy_(parameter.bfloat16())
    bench = tiny.bench(replace(wide, file_dtype=torch.bfloat16), tmp_path / "home")
    setting = replace(AWQ, symmetric=symmetric)
    expected = measured_state(bench, setting)
    write(bench, setting, target)
    assert json.loads((target / "config.json").read_text())["dtype"] == "bfloat16"
    assert reload(target).dtype == torch.bfloat16
    assert tiny.same_bits(expected, tiny.state(reload(target, torch.float32)))
    embeddings = tensor_bytes(target)["model.embed_tokens.weight"]
    assert embeddings == 2 * tiny.VOCABULARY * tiny.HIDDEN


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("tied", [True, False])
def test_the_head_stays_as_it_is(tied: bool, tmp_path: Path, target: Path) -> None:
    """The head is in 16 bit, and tied to the embeddings and not in the file where it was."""
    bench = tiny.bench(made(tied=tied), tmp_path / "home")
    write(bench, AWQ, target)
    reloaded = reload(target)
    assert torch.equal(reloaded.lm_head.weight, bench.model.module.lm_head.weight)
    assert (reloaded.lm_head.weight is reloaded.model.embed_tokens.weight) == tied
    assert ("lm_head.weight" in tensor_bytes(target)) == (not tied)


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("layout", ["llama", "opt", "opt-post-norm", "phi3"])
def test_the_file_has_what_the_format_prescribes(layout: str, tmp_path: Path, target: Path) -> None:
    """Every Linear of the blocks is packed and no other, and the configuration says so."""
    bench = tiny.bench(made(layout), tmp_path / "home")
    write(bench, replace(AWQ, symmetric=False), target)
    config = json.loads((target / "config.json").read_text())["quantization_config"]
    sizes = tensor_bytes(target)
    packed = {name.removesuffix(".weight_packed") for name in sizes if name.endswith(".weight_packed")}
    linears = {n for n, child in bench.model.module.named_modules() if isinstance(child, nn.Linear)}
    assert packed | set(config["ignore"]) == linears
    assert packed == {linear.name.partition(":")[0] for block in bench.blocks for linear in block.linears}
    for name in packed:
        outputs, inputs = bench.model.module.get_submodule(name).weight.shape
        groups = outputs * inputs // 32
        own = {
            part: sizes[f"{name}.{part}"]
            for part in ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
        }
        assert own == {
            "weight_packed": outputs * inputs // 2,
            "weight_scale": 2 * groups,
            "weight_zero_point": groups // 2,
            "weight_shape": 16,
        }
        assert f"{name}.weight" not in sizes
    assert config["config_groups"]["group_0"]["weights"] == {
        "num_bits": 4,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": 32,
        "dynamic": False,
    }


@pytest.mark.usefixtures("same_process")
def test_tokenizer_manifest_and_card_come_along(bench: Bench, target: Path) -> None:
    """The directory has a tokenizer, a generation configuration, the manifest and the card that was made of it."""
    manifest = write(bench, AWQ, target)
    assert AutoTokenizer.from_pretrained(target)("a b").input_ids == bench.model.tokenizer("a b").input_ids
    assert (target / "generation_config.json").is_file()
    assert isinstance(read_provenance(target), Provenance)
    assert decode(Manifest, json.loads((target / RECORD).read_text()), RECORD) == manifest
    assert manifest.weights == NAME
    assert (target / "README.md").read_text() == "# gw-awq"


@pytest.mark.usefixtures("same_process")
def test_a_packed_model_can_be_the_model_of_a_bench(bench: Bench, target: Path) -> None:
    """It loads as any model directory does, and scores what it should."""
    manifest = write(bench, replace(AWQ, symmetric=False), target)
    model = load_model(ModelPlan(name=str(target), dtype="bfloat16", accept_quantized=True))
    assert model.fingerprint != bench.model.fingerprint
    assert score_all(model.module, TEXT, "", silent).perplexity == pytest.approx(manifest.proof.measured, rel=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("same_process")
def test_a_fresh_process_scores_the_same(bench: Bench, target: Path) -> None:
    """Values per sequence from another process are those of this one; progress is told."""
    reports: list[tuple[int, int]] = []
    write(bench, replace(AWQ, symmetric=False), target)
    here = score_all(reload(target).eval(), TEXT, "", silent)
    there = rescore(
        {target: TRANSFORMERS},
        TEXT,
        bench.model,
        lambda phase, done, total: reports.append((done, total)) if "fresh" in phase else None,
    )[target].score
    torch.testing.assert_close(there.nll, here.nll)
    assert torch.equal(there.tokens, here.tokens)
    assert reports == [(8, 10), (10, 10)]


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("layout", ["llama", "phi3", "opt"])
def test_different_schemes_come_back_bit_by_bit(layout: str, tmp_path: Path, target: Path) -> None:
    """Each scheme is a group of its own that names its Linears, and every weight is the one that was measured."""
    bench = tiny.bench(made(layout), tmp_path / "home")
    first, second = ({linear.name: linear for linear in block.linears} for block in bench.blocks)
    coarse = replace(AWQ, group_size=64)
    plan = Plan(named={**dict.fromkeys(first, AWQ), **dict.fromkeys(second, coarse)})
    with quantized(bench, plan):
        expected = tiny.state(bench.model.module)
    manifest = write_model(export(bench, plan, target), silent)[NAME]
    reloaded = reload(target)
    # Of several schemes each is unpacked when its Linear is used first.
    reloaded(TEXT.ids[0][None])
    state = {name: tensor for name, tensor in tiny.state(reloaded).items() if name in expected}
    assert tiny.same_bits(expected, state)
    groups = json.loads((target / "config.json").read_text())["quantization_config"]["config_groups"]
    assert [group["weights"]["group_size"] for group in groups.values()] == [32, 64]
    assert [set(group["targets"]) for group in groups.values()] == [
        {name.partition(":")[0] for name in block} for block in (first, second)
    ]
    assert 0 < manifest.stored_bits_per_weight - manifest.bits_per_weight < 0.05


def allocated(bench: Bench) -> Plan:
    """Groups of 32 and 64 in four bits, eight bits and sixteen, all in one block, and eight in the other."""
    eight = replace(AWQ, bits=8, group_size=64)
    first, second = (find_sites([block]) for block in bench.blocks)
    settings = [AWQ, replace(AWQ, group_size=64), eight, replace(AWQ, bits=16)]
    sites = [*zip(first, settings, strict=True), *((site, eight) for site in second)]
    return Plan(named={name: setting for site, setting in sites for name in site.linears})


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("layout", ["llama", "phi3", pytest.param("opt", marks=pytest.mark.slow)])
def test_bits_of_several_kinds_come_back_bit_by_bit(layout: str, tmp_path: Path, target: Path) -> None:
    """What stays in 16 bit is left out of every group and stored with the scales it took."""
    bench = tiny.bench(made(layout), tmp_path / "home")
    plan = allocated(bench)
    with quantized(bench, plan):
        expected = tiny.state(bench.model.module)
    manifest = write_model(export(bench, plan, target), silent)[NAME]
    reloaded = reload(target)
    reloaded(TEXT.ids[0][None])
    assert tiny.same_bits(expected, {name: each for name, each in tiny.state(reloaded).items() if name in expected})
    config = json.loads((target / "config.json").read_text())["quantization_config"]
    weights = [group["weights"] for group in config["config_groups"].values()]
    assert [(group["num_bits"], group["group_size"]) for group in weights] == [(4, 32), (4, 64), (8, 64)]
    left = {name.partition(":")[0] for name in find_sites(bench.blocks)[3].linears}
    assert left < set(config["ignore"])
    assert not left & {name for group in config["config_groups"].values() for name in group["targets"]}
    assert 0 < manifest.stored_bits_per_weight - manifest.bits_per_weight < 0.05
    assert manifest.bits_per_weight == model_size(bench.model, bench.blocks, plan).bits_per_weight


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("method", ["rtn-channel", "gw-awq"])
def test_eight_bits_come_back_bit_by_bit(method: str, tmp_path: Path, target: Path) -> None:
    """In groups and per row, beside a site that stays in 16 bit; one scheme alone is read with zero points, too."""
    bench = tiny.bench(made(), tmp_path / "home")
    eight = replace(AWQ, method=method, bits=8, symmetric=False)
    left = find_sites(bench.blocks)[0].linears
    plan = Plan(named=dict.fromkeys(left, replace(eight, bits=16)), others=eight)
    with quantized(bench, plan):
        expected = tiny.state(bench.model.module)
    write_model(export(bench, plan, target), silent)[NAME]
    assert tiny.same_bits(expected, tiny.state(reload(target)))


@pytest.mark.usefixtures("same_process")
def test_a_model_that_stays_packed_is_measured_and_not_quantized_again(bench: Bench, target: Path) -> None:
    """Several schemes are unpacked on first use only: there are no weights to calibrate or to count."""
    plan = Plan(named={"model.layers.0.mlp.down_proj": replace(AWQ, group_size=64)}, others=AWQ)
    manifest = write_model(export(bench, plan, target), silent)[NAME]
    with pytest.raises(
        InputError, match=r"is already quantized \(compressed-tensors by praqtune: mixed, .* bits per weight\)"
    ):
        load_model(ModelPlan(name=str(target), dtype="bfloat16"))
    model = load_model(ModelPlan(name=str(target), dtype="bfloat16", accept_quantized=True))
    assert model.quantized is not None
    assert model.quantized.bits == manifest.bits_per_weight


def test_slices_of_one_matrix_have_one_scheme(tmp_path: Path) -> None:
    """A fused projection is packed as one matrix; the line names it."""
    fused = tiny.bench(made("phi3"), tmp_path / "home")
    rtn = Setting(method="rtn", group_size=32, n_calib=8)
    plan = Plan(named={"model.layers.0.self_attn.qkv_proj:k": replace(rtn, group_size=64)}, others=rtn)
    with pytest.raises(InputError, match=r"one matrix of model\.layers\.0\.self_attn\.qkv_proj:q, .* 2 schemes here"):
        CompressedTensors().require_holds(plan, fused)


@pytest.mark.parametrize("change", [{"group_size": 64}, {"bits": 8}, {"bits": 16}])
def test_what_runtimes_fuse_has_one_scheme(change: dict[str, int], bench: Bench) -> None:
    """Also where there are separate Linears that share no scale; those of another site may differ."""
    rtn = Setting(method="rtn", group_size=32, n_calib=8)
    for name, together in (("self_attn.q_proj", True), ("mlp.up_proj", True), ("self_attn.o_proj", False)):
        plan = Plan(named={f"model.layers.0.{name}": replace(rtn, **change)}, others=rtn)
        if together:
            with pytest.raises(
                InputError, match=r"runtimes of compressed-tensors make one matrix of .* 2 schemes here; give"
            ):
                CompressedTensors().require_holds(plan, bench)
        else:
            CompressedTensors().require_holds(plan, bench)


def test_bits_that_are_not_read_are_refused(bench: Bench) -> None:
    """Nothing has to be computed to know; and neither is anything packed where nothing is quantized."""
    with pytest.raises(
        InputError, match="compressed-tensors has weights of 4 or 8 bits, not of 3; give --bits 4 or 8, or write"
    ):
        CompressedTensors().require_holds(Plan.uniform(replace(AWQ, bits=3)))
    with pytest.raises(InputError, match="nothing is quantized, so there is nothing to pack; give fewer bits"):
        CompressedTensors().require_holds(Plan.uniform(replace(AWQ, bits=16)))


def test_several_schemes_with_zero_points_are_refused(bench: Bench) -> None:
    """Transformers would not read them; nothing has to be computed to know."""
    plan = Plan(named={"model.layers.0.mlp.down_proj": replace(AWQ, symmetric=False)}, others=AWQ)
    with pytest.raises(InputError, match="2 schemes where one has zero points; use --symmetric for all Linears"):
        CompressedTensors().require_holds(plan)


# What is refused, and what fails


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scales", ["foldable", "linear"])
def test_what_cannot_be_packed_is_refused_with_what_to_do(method: str, scales: str, bench: Bench, target: Path) -> None:
    """Mixed precision and scales at run time are refused before any work; every other method passes that check."""
    setting = Setting(method=method, scales=scales, group_size=32)
    unsuitable = setting.definition.keeps_rows or (scales == "linear" and setting.definition.salience is not None)
    if not unsuitable:
        CompressedTensors().require_holds(Plan.uniform(setting), bench)
        return
    with pytest.raises(InputError, match="write it with --format dense") as caught:
        write(bench, setting, target)
    assert "\n" not in str(caught.value)
    assert ("keeps rows in 16 bit" in str(caught.value)) == setting.definition.keeps_rows
    assert not target.parent.exists()


def test_a_partial_last_group_is_refused(bench: Bench, target: Path) -> None:
    """The format has whole groups only, also where partial ones were asked for."""
    partial = replace(bench, allow_partial_groups=True)
    with pytest.raises(InputError, match="partial last group that a group size of 48 leaves of 64, 128 inputs"):
        write(partial, replace(AWQ, group_size=48), target)
    assert not target.parent.exists()


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize(
    ("factor", "fails"), [(1.0009, False), (0.9992, False), (1.0011, True), (0.99, True), (float("nan"), True)]
)
def test_a_model_that_scores_otherwise_is_not_left_behind(
    factor: float, fails: bool, bench: Bench, target: Path
) -> None:
    """Apart by more than a thousandth nothing is written, and both values are said."""
    expected = factor * run_trial(bench, Plan.uniform(AWQ), TEXT).score.perplexity
    if not fails:
        write(bench, AWQ, target, expected)
        return
    with pytest.raises(RunError, match=rf"and {expected:.4f} was measured .*nothing was written"):
        write(bench, AWQ, target, expected)
    assert os.listdir(target.parent) == []


@pytest.mark.usefixtures("same_process")
def test_a_wrong_zero_point_is_noticed(bench: Bench, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof is of the files: one that were packed wrongly is not left behind."""
    packed_tensors = objectives.export.compressed_tensors.packed_tensors

    def wrong(weight: Any) -> Stored:
        tensors = packed_tensors(weight)
        return tensors | {"weight_zero_point": tensors["weight_zero_point"] ^ 0x11111111}

    monkeypatch.setattr(objectives.export.compressed_tensors, "packed_tensors", wrong)
    with pytest.raises(RunError, match=r"14 of 21 tensors .* are not those that were measured"):
        write(bench, replace(AWQ, symmetric=False), target)
    assert os.listdir(target.parent) == []


@pytest.mark.slow
def test_a_model_that_does_not_load_is_not_left_behind(
    bench: Bench, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the fresh process died of is said in one line."""
    monkeypatch.setattr(
        objectives.export.compressed_tensors, "quantization_config", lambda *_: {"quant_method": "no-such-method"}
    )
    with pytest.raises(
        RunError, match=r"cannot be loaded and scored in a fresh process: \d+ tensors are missing"
    ) as caught:
        write(bench, AWQ, target)
    assert "\n" not in str(caught.value)
    assert os.listdir(target.parent) == []


def test_a_target_that_holds_something_is_refused(bench: Bench, target: Path) -> None:
    """What is there stays."""
    target.mkdir(parents=True)
    (target / "notes.txt").write_text("precious")
    with pytest.raises(StorageError, match="exists already"):
        write(bench, AWQ, target)
    assert os.listdir(target) == ["notes.txt"]
