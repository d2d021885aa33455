"""What a format of a runtime holds is what was measured: to the last bit of every weight, or it is refused or fails."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from objectives.bundled.text import MODEL_DIRECTORY
from objectives.errors import InputError, RunError
from objectives.export import gguf, reading, runtime, tensors
from objectives.export.formats import Export, Proof, find_format
from objectives.export.manifest import Manifest
from objectives.export.reading import SPECIFICATION, load_directory
from objectives.export.writing import write_model
from objectives.model.loading import ModelPlan, load_model
from objectives.progress import silent
from objectives.trial import Bench, quantized, run_trial
from quant.errors import QuantizationError
from quant.plan import Plan
from quant.scheme import IntWeight
from quant.setting import Setting
from tests.objectives import tiny

GGUF = pytest.mark.skipif(not reading.installed("gguf", "accelerate"), reason="gguf is not installed")
FORMATS = ("gptq", "awq", "mlx", pytest.param("gguf", marks=GGUF))
PROVEN = ("compressed-tensors", *FORMATS)
AWQ = Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=5)
SETTINGS = {
    "symmetric": AWQ,
    "asymmetric": replace(AWQ, symmetric=False),
    # Scales of both signs.
    "full range": replace(AWQ, full_range=True, range_search="diagonal", rounding="gptq"),
    "groups of 64": replace(AWQ, group_size=64, symmetric=False),
    "rows": replace(AWQ, method="awq", symmetric=False),
}
# Fused projections, and biases.
QUICK = ("phi3", "qwen2")
TEXT = tiny.sequences([20] * 10, seed=2)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return made(tmp_path)


@pytest.fixture(autouse=True)
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no runtime is installed."""
    monkeypatch.setattr(runtime, "installed", lambda *_: False)


def made(tmp_path: Path, layout: str = "llama") -> Bench:
    config = tiny.LAYOUTS[layout]()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIRECTORY)
    config.vocab_size = len(tokenizer)
    model = replace(tiny.model(config, dtype=torch.bfloat16), tokenizer=tokenizer)
    return tiny.bench(model, tmp_path / "home")


def write(
    bench: Bench, setting: Setting | Plan, target: Path, names: Sequence[str], perplexity: float | None = None
) -> dict[str, Manifest]:
    plan = setting if isinstance(setting, Plan) else Plan.uniform(setting)
    proof = Proof(text=TEXT, perplexity=perplexity)
    directories = {name: target / name for name in names}
    return write_model(Export(bench=bench, plan=plan, directories=directories, proof=proof), silent)


def assert_written(bench: Bench, setting: Setting, target: Path, names: Sequence[str]) -> dict[str, Manifest]:
    """Writes formats, and reads the weights of the trial from each."""
    with quantized(bench, Plan.uniform(setting)):
        expected = tiny.state(bench.model.module)
    manifests = write(bench, setting, target, names)
    for name in names:
        state = tiny.state(load_directory(name, target / name, torch.bfloat16))
        if name in ("mlx", "gguf") and not setting.symmetric:
            # What is added to a code times its scale is rounded, which the notes count.
            for module, weight in expected.items():
                # Both the sum and what is added are numbers of 8 significant bits.
                torch.testing.assert_close(state[module], weight, rtol=0.02, atol=float(weight.abs().max()) / 128)
            counted = [note for note in manifests[name].notes if "which no trial measured" not in note]
            assert all(note.endswith("of a step of their codes") for note in counted)
        elif name == "mlx":
            # Zeros of negative scales have another sign.
            assert all(torch.equal(weight, state[module]) for module, weight in expected.items())
        else:
            assert tiny.same_bits(expected, state)
        proof = manifests[name].proof
        assert proof is not None
        assert proof.packed == pytest.approx(proof.measured, rel=1e-3 if manifests[name].notes else 1e-6)
        assert proof.reader.startswith("transformers" if name == "gguf" else SPECIFICATION)
    return manifests


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("name", SETTINGS)
def test_every_grid_comes_back_bit_by_bit(name: str, bench: Bench, tmp_path: Path) -> None:
    """Both grids, scales of both signs, groups and rows; one quantized model is written in every format."""
    before = tiny.state(bench.model.module)
    names = ("gptq", "awq") if name == "rows" else ("gptq", "awq", "mlx")
    manifests = assert_written(bench, SETTINGS[name], tmp_path, names)
    assert tiny.same_bits(before, tiny.state(bench.model.module))
    for manifest in manifests.values():
        assert manifest.stored_bits_per_weight is not None
        # Symmetric codes have zero points here, too, and GPTQ the group of every input.
        assert -0.01 < manifest.stored_bits_per_weight - manifest.bits_per_weight < 1.0


@pytest.mark.usefixtures("same_process")
def test_what_vllm_does_not_load_is_noted(bench: Bench, tmp_path: Path) -> None:
    """It refuses GPTQ with zero points, and nothing else."""
    names = ("gptq", "awq")
    noted = write(bench, SETTINGS["asymmetric"], tmp_path / "asymmetric", names)
    plain = write(bench, SETTINGS["symmetric"], tmp_path / "symmetric", names)
    said = [any("vLLM does not" in note for note in manifest.notes) for manifest in (*noted.values(), *plain.values())]
    assert said == [True, False, False, False]


@pytest.mark.slow
@GGUF
@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("name", ["symmetric", "asymmetric", "full range"])
def test_every_grid_comes_back_from_gguf(name: str, bench: Bench, tmp_path: Path) -> None:
    """With queries and keys in the order that llama.cpp rotates them in, and scales of both signs."""
    manifest = assert_written(bench, SETTINGS[name], tmp_path, ("gguf",))["gguf"]
    assert manifest.stored_bits_per_weight == (4.5 if SETTINGS[name].symmetric else 5.0)


@pytest.mark.slow
@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize(
    ("dtype", "file"),
    [("float32", None), ("float32", "bfloat16"), ("float32", "float16"), ("float16", None)],
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_models_of_every_number_type_are_proven(dtype: str, file: str | None, symmetric: bool, tmp_path: Path) -> None:
    """As they are run and as they are stored, which readers round at different places."""
    bench = made(tmp_path, "qwen2")
    bench.model.module.to(getattr(torch, file or dtype)).to(getattr(torch, dtype))
    bench = replace(bench, model=replace(bench.model, file_dtype=None if file is None else getattr(torch, file)))
    names = ("compressed-tensors", "gptq", "awq", "mlx", *(("gguf", "gguf-q8") if reading.installed("gguf") else ()))
    for manifest in write(bench, replace(AWQ, symmetric=symmetric), tmp_path / "models", names).values():
        assert manifest.proof is not None
        assert (manifest.proof.tensors, manifest.proof.linears) == (27, 14)


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize(
    "layout",
    [name if name in ("phi3", "qwen2") else pytest.param(name, marks=pytest.mark.slow) for name in tiny.LAYOUTS],
)
def test_every_layout_comes_back_bit_by_bit(layout: str, tmp_path: Path) -> None:
    """Fused projections are one matrix, and biases stay."""
    assert_written(made(tmp_path, layout), SETTINGS["asymmetric"], tmp_path, ("gptq", "awq", "mlx"))


@GGUF
@pytest.mark.usefixtures("same_process")
def test_biases_come_back_from_gguf(tmp_path: Path) -> None:
    """Under the names and in the order of another architecture."""
    assert_written(made(tmp_path, "qwen2"), AWQ, tmp_path, ("gguf",))


@pytest.mark.usefixtures("same_process")
def test_what_is_measured_is_what_is_proven(bench: Bench, tmp_path: Path) -> None:
    """A perplexity that is a thousandth away is another model's: no directory of any format is left."""
    measured = run_trial(bench, Plan.uniform(AWQ), TEXT).score
    assert measured is not None
    with pytest.raises(RunError, match=r"the gptq model has a perplexity of .* was measured .*nothing was written"):
        write(bench, AWQ, tmp_path / "models", ("gptq", "awq"), 1.002 * measured.perplexity)
    assert not (tmp_path / "models").exists()


def with_codes_of(change: Callable[[str, IntWeight], IntWeight], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every format is handed other codes than those that were measured."""
    module_codes = tensors.module_codes

    def wrong(blocks: Any, plan: Plan, codes: Mapping[str, IntWeight]) -> Any:
        return ((module, change(module, weight)) for module, weight in module_codes(blocks, plan, codes))

    for module in (tensors, gguf):
        monkeypatch.setattr(module, "module_codes", wrong)


def assert_not_proven(bench: Bench, setting: Setting, name: str, target: Path) -> str:
    """What is said of tensors that are not those that were measured; nothing of the directory is left."""
    with pytest.raises(
        RunError, match=rf"a fresh process has loaded of the {name} model are not .*nothing was"
    ) as caught:
        write(bench, setting, target / "models", (name,))
    assert os.listdir(target / "models") == []
    return str(caught.value)


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", PROVEN)
def test_one_wrong_code_fails_the_proof(
    name: str, symmetric: bool, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 73,728; the Linear that has it is named."""
    linear = "model.layers.1.mlp.down_proj"

    def wrong(module: str, weight: IntWeight) -> IntWeight:
        codes = weight.codes.clone()
        if module == linear:
            codes[3, 5] += 1 if codes[3, 5] < 7 else -1
        return replace(weight, codes=codes)

    with_codes_of(wrong, monkeypatch)
    line = assert_not_proven(bench, replace(AWQ, symmetric=symmetric), name, tmp_path)
    assert line.startswith("1 of 21 tensors ")
    assert f"(first: {linear})" in line
    monkeypatch.undo()


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("name", PROVEN)
def test_the_proof_says_how_many_tensors_and_codes_were_equal(name: str, bench: Bench, tmp_path: Path) -> None:
    """All of them: seven Linears in each of two blocks, beside norms, embeddings and head."""
    proof = write(bench, AWQ, tmp_path, (name,))[name].proof
    assert proof is not None
    assert (proof.tensors, proof.linears, proof.noise) == (21, 14, 0.0)


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("name", PROVEN)
def test_codes_of_nearest_rounding_fail_the_proof_of_another_setting(
    name: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the calibration had not been used."""
    nearest = Setting(method="rtn", group_size=32, n_calib=8)
    with quantized(bench, Plan.uniform(nearest), with_codes=True) as result:
        codes = result.codes
    with_codes_of(lambda module, _: codes[module], monkeypatch)
    assert_not_proven(bench, replace(nearest, range_search="block", rounding="gptq"), name, tmp_path)


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("name", PROVEN)
def test_zero_points_that_are_off_by_one_fail_the_proof(
    name: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a reader and a writer of two versions of a format."""

    def above(_: str, weight: IntWeight) -> IntWeight:
        assert weight.zero is not None
        return replace(weight, zero=(weight.zero + 1).clamp(max=15))

    with_codes_of(above, monkeypatch)
    assert_not_proven(bench, SETTINGS["asymmetric"], name, tmp_path)


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("name", PROVEN)
def test_scales_that_were_folded_twice_fail_the_proof(
    name: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms that took the input scales once more."""
    other_tensors = tensors.other_tensors
    original = tiny.state(bench.model.module)

    def twice(*arguments: Any) -> dict[str, Tensor]:
        kept: dict[str, Tensor] = other_tensors(*arguments)
        norms = [norm for norm in kept if "layernorm" in norm]
        return kept | {norm: kept[norm] * (kept[norm] / original[norm]) for norm in norms}

    for module in (tensors, gguf):
        monkeypatch.setattr(module, "other_tensors", twice)
    assert_not_proven(bench, AWQ, name, tmp_path)


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("name", FORMATS)
def test_a_directory_is_complete(name: str, bench: Bench, tmp_path: Path) -> None:
    """Configuration, tokenizer, manifest; nothing of the quantized Linears in 16 bit."""
    manifest = write(bench, AWQ, tmp_path, (name,))[name]
    files = set(os.listdir(tmp_path / name))
    weights = "model.gguf" if name == "gguf" else "model.safetensors"
    assert {"config.json", weights, "tokenizer.json", "praqtune.json", "generation_config.json"} <= files
    assert manifest.weights == name
    said = "has GGUF instead of safetensors" if name == "gguf" else rf"already quantized \({name} by praqtune: gw-awq"
    with pytest.raises(InputError, match=said):
        load_model(ModelPlan(name=str(tmp_path / name)))
    if name != "gguf":
        config = json.loads((tmp_path / name / "config.json").read_text())
        config = config["quantization" if name == "mlx" else "quantization_config"]
        assert (config.get("quant_method", "mlx"), config["bits"], config["group_size"]) == (name, 4, 32)
        stored = load_file(tmp_path / name / weights)
        assert stored["model.layers.0.mlp.down_proj.scales"].dtype == (
            torch.bfloat16 if name == "mlx" else torch.float16
        )


@pytest.mark.usefixtures("same_process")
def test_biases_of_mlx_that_the_models_type_rounds_are_in_the_model_that_is_scored(tmp_path: Path) -> None:
    """What is measured is what the file holds, to the digit, and a note has both numbers; other formats hold all."""
    bench = made(tmp_path)
    # So sure of itself that rounding zero points shows.
    bench.model.module.lm_head.weight.mul_(20)
    before = tiny.state(bench.model.module)
    proofs, notes = {}, {}
    for name, setting in (("mlx", SETTINGS["asymmetric"]), ("awq", SETTINGS["asymmetric"]), ("symmetric", AWQ)):
        form = name if name == "awq" else "mlx"
        export = Export(
            bench=bench,
            plan=Plan.uniform(setting),
            directories={form: tmp_path / name},
            proof=Proof(text=TEXT, perplexity=None),
        )
        manifest = write_model(export, silent)[form]
        assert manifest.proof is not None
        proofs[name], notes[name] = manifest.proof, manifest.notes
    assert tiny.same_bits(before, tiny.state(bench.model.module))
    assert proofs["mlx"].measured != proofs["awq"].measured
    assert proofs["mlx"].packed == pytest.approx(proofs["mlx"].measured, rel=1e-6)
    assert any(
        note.startswith(f"zero points are rounded, which no trial measured: perplexity {proofs['mlx'].measured:.4f}")
        for note in notes["mlx"]
    )
    assert not any("which no trial measured" in note for name in ("awq", "symmetric") for note in notes[name])


@pytest.mark.usefixtures("same_process")
def test_zero_points_that_the_first_version_of_gptq_cannot_hold(bench: Bench, tmp_path: Path) -> None:
    """It stores the number below a zero point; with zero points the second version is written, and says so."""
    for symmetric, version in ((True, "gptq"), (False, "gptq_v2")):
        write(bench, replace(AWQ, symmetric=symmetric), tmp_path / version, ("gptq",))
        config = json.loads((tmp_path / version / "gptq" / "config.json").read_text())["quantization_config"]
        assert (config["sym"], config["checkpoint_format"], config["desc_act"]) == (symmetric, version, False)


@pytest.mark.usefixtures("same_process")
def test_scales_that_float16_rounds_are_counted(bench: Bench, tmp_path: Path) -> None:
    """A bfloat16 scale below the smallest normal number of float16 may lose digits."""
    bench.model.module.model.layers[0].mlp.down_proj.weight[:3] *= 1e-5
    manifest = write(bench, AWQ, tmp_path, ("awq",))["awq"]
    [note] = manifest.notes
    assert note.endswith("of their value")
    assert 0 < int(note.split()[0]) <= 3 * 4


def test_scales_that_float16_cannot_hold_are_refused() -> None:
    """In one line with the format that holds them."""
    weight = IntWeight(
        codes=torch.ones(8, 32, dtype=torch.int8),
        scale=torch.full((8, 1), 1e5, dtype=torch.bfloat16),
        zero=None,
        group_size=32,
        bits=4,
    )
    with pytest.raises(QuantizationError, match="scale of 99840, and float16 holds at most 65504; use --format comp"):
        tensors.half_scales(weight)


REFUSED = [
    (Setting(method="praq-mixed"), "keeps rows in 16 bit, which {} cannot hold; write it with --format dense"),
    (replace(AWQ, scales="linear"), "which {} cannot hold; write it with --format dense, or use --scales foldable"),
    (replace(AWQ, group_size=256), "{} has no kernel for groups of 256; use --group-size 32"),
    (replace(AWQ, bits=8), "{} has weights of 4 bits, not of 8; give --bits 4, or write it with --format dense"),
    (
        Plan(named={"model.layers.0.mlp.down_proj": AWQ}, others=replace(AWQ, symmetric=False)),
        "{} has one scheme for all Linears, and there are 2 here",
    ),
]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("setting", "said"), REFUSED)
def test_what_a_format_cannot_hold_is_refused_by_the_plan_alone(name: str, setting: Setting | Plan, said: str) -> None:
    """In one line with the remedy, before a model is loaded."""
    plan = setting if isinstance(setting, Plan) else Plan.uniform(setting)
    with pytest.raises(InputError) as caught:
        find_format(name).require_holds(plan)
    assert said.format(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mlx", pytest.param("gguf", marks=GGUF)])
def test_rows_are_refused_where_there_are_only_groups(name: str) -> None:
    """With what has groups."""
    with pytest.raises(InputError, match=f"awq has one scale per row, which {name} has no kernel for; choose a method"):
        find_format(name).require_holds(Plan.uniform(SETTINGS["rows"]))


@pytest.mark.parametrize(
    ("name", "hidden", "size", "remedy"),
    [
        ("awq", 64, 128, "use --group-size 32 or 64"),
        ("compressed-tensors", 64, 48, "use a --group-size that divides 64"),
        # No groups of this format suit 48 inputs.
        ("mlx", 48, 32, "use --format compressed-tensors with a --group-size that divides 16"),
        pytest.param("gguf", 48, 32, "use --format compressed-tensors with a --group-size that divides 16", marks=GGUF),
    ],
)
def test_groups_that_leave_a_part_are_refused_with_those_that_do_not(
    name: str, hidden: int, size: int, remedy: str, tmp_path: Path
) -> None:
    """Of the sizes that the format has, or of a format that has any."""
    config = tiny.LAYOUTS["llama"]()
    config.hidden_size, config.head_dim = hidden, hidden // tiny.HEADS
    bench = tiny.bench(tiny.model(config), tmp_path)
    with pytest.raises(InputError) as caught:
        find_format(name).require_holds(Plan.uniform(replace(AWQ, group_size=size)), bench)
    assert str(caught.value).endswith(f" inputs; {remedy}, or write it with --format dense")


def test_linears_that_fill_no_words_are_refused(bench: Bench) -> None:
    """Eight codes are a word."""
    linear = next(bench.blocks[0].linears)
    linear.module.weight = torch.nn.Parameter(linear.module.weight[:60], requires_grad=False)
    with pytest.raises(InputError, match=f"gptq packs 8 codes into a word, and {linear.name} has 60 outputs"):
        find_format("gptq").require_holds(Plan.uniform(AWQ), bench)


def test_packages_that_are_not_installed_are_not_used() -> None:
    """What is asked for is looked up by the names of distributions."""
    assert reading.installed("torch", "transformers")
    assert not reading.installed("torch", "no-such-package")
    assert reading.versions_of("torch").startswith("torch 2")
