"""`quantize` through the command line: a directory that scores as it was measured, and what is refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import cli
import objectives.export.compressed_tensors
import objectives.export.gguf
from objectives.bundled.text import MODEL_DIRECTORY
from objectives.model.finding import find_blocks
from objectives.model.loading import ModelPlan, load_model
from objectives.progress import silent
from objectives.results import pinned
from objectives.scoring import score_all
from storage.paths import Paths
from storage.results import ResultStore
from tests.commands import printed, refusal
from tests.conftest import SmallStudy

METHOD = ["--method", "gw-awq", "--group-size", "64"]


@pytest.fixture(autouse=True)
def _home(small_study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRAQTUNE_HOME", str(small_study.home))


def test_a_method_is_written_as_it_was_measured(capsys: Any, small_study: SmallStudy, tmp_path: Path) -> None:
    """The directory loads like any other, in the model's type, and scores the method's perplexity."""
    target = tmp_path / "made" / "awq"
    where = ["--format", "dense", "--output-dir", str(target)]
    found = printed(capsys, "quantize", *small_study.flags, *METHOD, *where)
    assert not [note for note in found["notes"] if "dense" in note]
    assert (found["method"], found["bits_per_weight"], found["directory"]) == ("gw-awq", 4.25, str(target))
    assert found["parameters"]["n_calib"] == 16
    assert found["disk_bytes"] == sum(path.stat().st_size for path in target.iterdir())
    assert {key: found[key] for key in ("method", "layers", "model")} == {
        key: json.loads((target / "praqtune.json").read_text())[key] for key in ("method", "layers", "model")
    }
    module = AutoModelForCausalLM.from_pretrained(target)
    assert str(module.dtype).removeprefix("torch.") == found["model"]["dtype"]
    text = ["--eval-data", "bundled:docstrings"]
    measured = printed(capsys, "evaluate", *small_study.flags, *METHOD, *text)["rows"]
    written = printed(capsys, "evaluate", *small_study.flags[:4], "--model", str(target), *text)["rows"]
    expected = {row["dataset"]: row["perplexity"] for row in measured if row["setting"]}
    assert {row["dataset"]: row["perplexity"] for row in written} == pytest.approx(expected, rel=1e-3)


def test_what_could_not_be_split_over_devices_is_refused(capsys: Any, small_study: SmallStudy, tmp_path: Path) -> None:
    """Before anything is computed: three devices for four heads, and formats that no runtime splits."""
    common = [*small_study.flags, *METHOD, "--output-dir", str(tmp_path / "out"), "--tensor-parallel"]
    line = refusal(capsys, "quantize", *common, "3", "--format", "gptq")
    assert "4 attention heads with 2 key/value heads cannot be split over 3 devices; give another --tensor" in line
    line = refusal(capsys, "quantize", *common, "8", "--format", "awq", "--group-size", "128")
    assert "attention heads" in line
    assert "--tensor-parallel 2 is for runtimes that split packed" in refusal(
        capsys, "quantize", *common, "2", "--format", "mlx"
    )
    assert "--tensor-parallel 0 is not at least 1" in refusal(capsys, "quantize", *common, "0", "--format", "gptq")
    line = refusal(capsys, "quantize", *common, "4", "--format", "gptq", "--group-size", "128")
    assert "groups of 128 do not divide the 256 inputs of model.layers.0.self_attn.o_proj split over 4 devices" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_reference_that_wins_is_written_and_the_reason_is_said(capsys: Any, tmp_path: Path) -> None:
    """No trial of this study beats plain AWQ, so that is what the study's name alone gives."""
    recommended = printed(capsys, "show", "--study", "small")["recommendation"]
    assert (recommended["name"], recommended["kind"]) == ("gw-awq", "reference")
    found = printed(capsys, "quantize", "--study", "small", "--output-dir", str(tmp_path / "awq"))
    assert found["method"] == "gw-awq"
    assert found["parameters"] == {name: recommended["setting"][name] for name in found["parameters"]}
    assert found["bits_per_weight"] == recommended["bits_per_weight"]
    assert found["notes"][0].startswith("what is recommended is gw-awq g128, a reference: nothing that was searched")
    assert "; --trial best writes" in found["notes"][0]


def test_the_best_trial_is_written_as_the_study_measured_it(
    capsys: Any, small_study: SmallStudy, tmp_path: Path
) -> None:
    """With nothing but the study's name and that word: model, text and setting are its own, and a note says that the
    default format is not one to ship."""
    best = printed(capsys, "show", "--study", "small")["best"]
    target = tmp_path / "best"
    found = printed(capsys, "quantize", "--study", "small", "--trial", "best", "--output-dir", str(target))
    reads = {"beta", "tau", "n_grid", "n_calib", "group_size"}
    assert {name: found["parameters"][name] for name in reads} == {name: best["params"][name] for name in reads}
    assert found["bits_per_weight"] == best["bits_per_weight"]
    assert found["notes"] == [
        "dense weights are of full size, and no fresh process has proven them; to ship the model, give another "
        "--format: compressed-tensors, gptq, awq, gguf, gguf-q8, mlx"
    ]
    contract = printed(capsys, "show", "--study", "small")["contract"]
    tuning = pinned(ResultStore(Paths(small_study.home).results), f"text-{contract['tuning']['fingerprint']}")
    model = load_model(ModelPlan(name=str(target), dtype=contract["model"]["dtype"], accept_quantized=True))
    assert score_all(model.module, tuning, "", silent).perplexity == pytest.approx(best["value"], rel=1e-3)


@pytest.mark.slow
def test_a_trial_is_chosen_by_its_number(capsys: Any, tmp_path: Path) -> None:
    """Trial 2 is the third preset; what was written is printed for people."""
    trial = printed(capsys, "show", "--study", "small")["trials"][2]
    target = tmp_path / "two"
    assert cli.main(["quantize", "--study", "small", "--trial", "2", "--output-dir", str(target)]) == 0
    text = capsys.readouterr().out
    for part in (str(target), f"beta={trial['params']['beta']:g}", "bits per weight", "4.125", "MB on disk"):
        assert part in text
    assert json.loads((target / "praqtune.json").read_text())["parameters"]["tau"] == trial["params"]["tau"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "gptq"], "method 'gptq' is unknown; choose one of rtn, rtn-channel, awq"),
        (["--method", "praq-mixed", "--keep-ratio", "2"], "keep_ratio 2.0 is outside 0..1"),
        (
            ["--method", "awq", "--group-size", "64", "--tau", "2"],
            "awq does not read tau; leave --tau out; awq does not read group_size; leave --group-size out, or give "
            "--method gw-awq, the same in groups",
        ),
        (["--method", "gw-awq", "--damping", "0.1"], "nearest rounding does not read damping; leave --damping out"),
        (["--method", "rtn", "--bits", "16", "--group-size", "64"], "--bits 16 does not read group_size; leave"),
        (["--method", "rtn", "--budget", "4.3", "--group-size", "64"], "under a budget every Linear has a group size"),
        ([], "give --method NAME, --plan FILE or --study NAME"),
        (["--study", "absent"], "there is no study 'absent'; there are: small"),
        (
            ["--study", "small", "--trial", "99"],
            "study 'small' has no trial '99'; give recommended, best or a number (0 to 3)",
        ),
        (["--study", "small", "--beta", "0.5"], "a trial has its own setting"),
        (["--study", "small", "--seed", "7"], "the calibration text that was loaded is not the study's: give"),
        (
            ["--study", "small", "--dtype", "float16"],
            "the model that was loaded is not the study's: give --model bundled",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(
    capsys: Any, tmp_path: Path, arguments: list[str], said: str
) -> None:
    """What was received, and the remedy."""
    target = tmp_path / "out"
    assert said in refusal(capsys, "quantize", *arguments, "--output-dir", str(target))
    assert not target.exists()


def test_an_occupied_directory_is_refused_before_the_model_is_loaded(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies there stays, and the line names the flag; the command has to change."""
    (tmp_path / "mine.txt").write_text("mine")

    def loaded(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("hpo.deploy.deploy.load_bench", loaded)
    line = refusal(capsys, "quantize", *METHOD, "--output-dir", str(tmp_path))
    assert "exists already; choose another --output-dir" in line
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_flags_of_mixed_methods_reach_what_is_written(capsys: Any, small_study: SmallStudy, tmp_path: Path) -> None:
    """All five of them are in the record of the method that reads them."""
    given = ["--keep-ratio", "0.05", "--beta-risk", "2", "--tau-risk", "-1", "--noise-factor", "0.3"]
    arguments = [*given, "--variance-penalty", "0.7", "--method", "praq-mixed-var"]
    target = str(tmp_path / "mixed")
    found = printed(capsys, "quantize", *small_study.flags[:6], *arguments, "--output-dir", target)
    expected = {"keep_ratio": 0.05, "beta_risk": 2, "tau_risk": -1, "noise_factor": 0.3, "variance_penalty": 0.7}
    assert expected.items() <= found["parameters"].items()
    assert 4 < found["bits_per_weight"] < 5


@pytest.mark.parametrize("process", ["same_process", pytest.param("fresh_process", marks=pytest.mark.slow)])
def test_what_is_recommended_is_packed_and_proven(
    capsys: Any, small_study: SmallStudy, tmp_path: Path, process: str, request: pytest.FixtureRequest
) -> None:
    """As INT4 it scores what it scored in the study, and its card says why it is recommended."""
    if process == "same_process":
        request.getfixturevalue(process)
    best = printed(capsys, "show", "--study", "small")["recommendation"]
    assert (best["name"], best["kind"]) == ("gw-awq", "reference")
    target = tmp_path / "packed"
    found = printed(
        capsys, "quantize", "--study", "small", "--format", "compressed-tensors", "--output-dir", str(target)
    )
    assert found["notes"][0].startswith("what is recommended is gw-awq g128, a reference: nothing that was searched")
    assert found["proof"]["measured"] == best["perplexity"]
    assert found["proof"]["packed"] == pytest.approx(best["perplexity"], rel=1e-3)
    # The study's values per sequence are at hand.
    assert found["proof"]["noise"] == pytest.approx(0, abs=1e-3)
    assert (found["proof"]["linears"], found["proof"]["tensors"]) == (42, 56)
    assert found["disk_bytes"] == sum(path.stat().st_size for path in target.iterdir())
    assert found["stored_bits_per_weight"] == pytest.approx(best["bits_per_weight"], abs=0.02)
    model = load_model(ModelPlan(name=str(target), accept_quantized=True))
    contract = printed(capsys, "show", "--study", "small")["contract"]
    tuning = pinned(ResultStore(Paths(small_study.home).results), f"text-{contract['tuning']['fingerprint']}")
    assert score_all(model.module, tuning, "", silent).perplexity == pytest.approx(best["perplexity"], rel=1e-3)
    card = (target / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")
    for part in (f"{found['proof']['packed']:.4f}", "study `small`", "| rtn (rtn) |", "95 % intervals", "vllm serve"):
        assert part in card
    level = next(line for line in card.splitlines() if line.startswith("| **"))
    assert f"{best['perplexity']:.3f}" in level
    assert best["verdict"] in card
    assert f"bits per weight: {best['reason']}." in card


@pytest.mark.usefixtures("same_process")
def test_a_method_is_packed_and_printed_for_people(capsys: Any, small_study: SmallStudy, tmp_path: Path) -> None:
    """Without a study it is measured first; both perplexities, bits in the file and size on disk are printed."""
    target = tmp_path / "packed"
    arguments = [
        *small_study.flags,
        *METHOD,
        "--asymmetric",
        "--format",
        "compressed-tensors",
        "--output-dir",
        str(target),
    ]
    assert cli.main(["quantize", *arguments]) == 0
    text = capsys.readouterr().out
    for part in (
        "perplexity, measured",
        "perplexity, reloaded",
        "bits per weight, in the file",
        "MB on disk, compressed-tensors",
    ):
        assert part in text
    proof = json.loads((target / "praqtune.json").read_text())["proof"]
    assert proof["packed"] == pytest.approx(proof["measured"], rel=1e-3)
    assert "study" not in (target / "README.md").read_text().lower()


@pytest.mark.usefixtures("same_process")
def test_several_formats_are_written_at_once(capsys: Any, small_study: SmallStudy, tmp_path: Path) -> None:
    """Each into a directory of its name, complete; a row of the table has what each takes and by what it was read."""
    target = tmp_path / "models"
    where = ["--format", "compressed-tensors, awq", "--output-dir", str(target), "--json", str(tmp_path / "json")]
    assert cli.main(["quantize", *small_study.flags, *METHOD, *where]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {path.name for path in target.iterdir()} == {"compressed-tensors", "awq"}
    facts = json.loads((tmp_path / "json").read_text())["formats"]
    for name, part in facts.items():
        [row] = [row for row in rows if row[:1] == [name]]
        assert f"{part['proof']['packed']:.4f}" in row
        assert f"{part['disk_bytes'] / 1e6:.2f}" in row
        card = (target / name / "README.md").read_text()
        assert part["proof"]["reader"] in card
        assert f"- {name}\n" in card
    assert facts["awq"]["layers"] == facts["compressed-tensors"]["layers"]


@pytest.mark.parametrize("formats", ["awq,awq", "awq,", ","])
def test_formats_are_named_once(capsys: Any, tmp_path: Path, formats: str) -> None:
    """Before anything is loaded, in one line with those there are."""
    line = refusal(capsys, "quantize", *METHOD, "--format", formats, "--output-dir", str(tmp_path / "out"))
    assert f"--format {formats} has to name formats, each once; choose of dense, compressed-tensors, gptq" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "gw-awq", "--scales", "linear"], "--format dense, or use --scales foldable"),
        (["--method", "praq-mixed"], "praq-mixed keeps rows in 16 bit, which compressed-tensors cannot hold"),
        (["--method", "rtn", "--group-size", "48", "--allow-partial-groups"], "partial last group"),
        (["--study", "small", "--eval-samples", "7"], "the tuning text that was loaded is not the study's: give"),
    ],
)
def test_what_cannot_be_packed_is_one_line_and_writes_nothing(
    capsys: Any, tmp_path: Path, arguments: list[str], said: str
) -> None:
    """The reason and what to do instead."""
    target = tmp_path / "out"
    assert said in refusal(
        capsys, "quantize", *arguments, "--format", "compressed-tensors", "--output-dir", str(target)
    )
    assert not target.exists()


def test_an_unknown_format_is_refused(capsys: Any, tmp_path: Path) -> None:
    """The formats there are."""
    line = refusal(capsys, "quantize", *METHOD, "--format", "exl2", "--output-dir", str(tmp_path / "out"))
    assert "format 'exl2' is unknown; choose dense or compressed-tensors" in line


@pytest.mark.usefixtures("same_process")
def test_a_packed_model_that_holds_something_else_fails(
    capsys: Any, small_study: SmallStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, the first Linear that is wrong and how many are, and nothing that looks finished."""
    packed_tensors = objectives.export.compressed_tensors.packed_tensors

    def wrong(weight: Any) -> dict[str, Any]:
        tensors = packed_tensors(weight)
        return tensors | {"weight_scale": tensors["weight_scale"] * 1.1}

    monkeypatch.setattr(objectives.export.compressed_tensors, "packed_tensors", wrong)
    arguments = [
        *small_study.flags,
        *METHOD,
        "--format",
        "compressed-tensors",
        "--output-dir",
        str(tmp_path / "made" / "out"),
    ]
    line = refusal(capsys, "quantize", *arguments, code=1)
    assert re.search(
        r"42 of 56 tensors .* compressed-tensors model .*first: model\.layers\.0\.self_attn\.q_proj\)", line
    )
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--format", "awq", "--group-size", "256"], "awq has no kernel for groups of 256; use --group-size 32 or 64"),
        (["--format", "gguf", "--group-size", "64"], "gguf has no kernel for groups of 64; use --group-size 32"),
        (
            ["--format", "mlx", "--method", "awq"],
            "awq has one scale per row, which mlx has no kernel for; choose a meth",
        ),
        (["--format", "gptq", "--scales", "linear"], "--scales linear divides the inputs of every Linear where the mo"),
        (
            ["--format", "awq", "--method", "praq-mixed"],
            "praq-mixed keeps rows in 16 bit, which awq cannot hold; write",
        ),
        (
            ["--format", "gptq", "--bits", "8"],
            "gptq has weights of 4 bits, not of 8; give --bits 4, or write it",
        ),
        (["--format", "mlx", "--plan", "mixed.csv"], "mlx has one scheme for all Linears, and there are 2 here; give"),
        (
            ["--format", "gptq", "--plan", "head.csv"],
            "the plan has settings for lm_head, which the decoder blocks of this model do not have; leave",
        ),
        (
            ["--format", "gguf", "--model", "words"],
            "splits text as no tokenizer does that llama.cpp knows; use --format",
        ),
    ],
    ids=["group", "gguf group", "rows", "linear", "kept rows", "bits", "mixed plan", "head", "tokenizer"],
)
def test_what_a_runtime_does_not_load_is_refused(
    flags: list[str], said: str, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line with the remedy; nothing is written. The head is in 16 bit in every format, tied or not."""
    monkeypatch.chdir(tmp_path)
    names = [
        linear.name for block in find_blocks(load_model(ModelPlan(name="bundled")).module) for linear in block.linears
    ]
    for name, rows in (
        ("mixed.csv", [f"{linear},gw-awq,{64 if 'mlp' in linear else 32}" for linear in names]),
        ("head.csv", [f"{linear},gw-awq,64" for linear in [*names, "lm_head"]]),
    ):
        (tmp_path / name).write_text("\n".join(["linear,method,group_size", *rows]))
    copied = shutil.copytree(MODEL_DIRECTORY, tmp_path / "words")
    described = json.loads((copied / "tokenizer.json").read_text(encoding="utf-8"))
    described["pre_tokenizer"]["add_prefix_space"] = True
    (copied / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    of_groups = ["--method", "gw-awq", "--group-size", "32", "--n-calib", "8"]
    usual = [] if {"--plan", "--method"} & {*flags} else of_groups
    common = ["--eval-samples", "8", "--seq-len", "64", "--calib-data", "bundled:topics"]
    line = refusal(
        capsys, "quantize", *common, "--eval-data", "bundled:docstrings", *usual, *flags, "--output-dir", "out"
    )
    assert said in line
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_what_installs_it(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a model is loaded."""
    monkeypatch.setattr(objectives.export.gguf, "installed", lambda *_: False)
    line = refusal(
        capsys, "quantize", "--format", "gguf", *METHOD[:2], "--group-size", "32", "--output-dir", str(tmp_path / "out")
    )
    assert line.endswith("gguf needs the packages gguf and accelerate; pip install 'praqtune[gguf]'")
