"""`quantize --refine` through the command line: a directory whose codes and scales changed, and what it tells of it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

import cli
from objectives.errors import InputError, RunError
from objectives.export.formats import FORMATS
from tests.commands import refusal
from tests.conftest import SmallStudy
from tests.objectives.tiny import same_bits

# Enough of the small study's docstrings are left over.
REFINE = ["--refine", "--refine-samples", "24", "--refine-rate", "0.003", "--refine-data", "bundled:docstrings"]
METHOD = ["--method", "gw-awq", "--group-size", "64", "--asymmetric", "--format", "compressed-tensors"]


@pytest.fixture(autouse=True)
def _home(small_study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRAQTUNE_HOME", str(small_study.home))


def written(capsys: Any, target: Path, *arguments: str) -> dict[str, Any]:
    """What `quantize` prints as JSON of what it writes there."""
    capsys.readouterr()
    assert cli.main(["quantize", *arguments, "--output-dir", str(target), "--json"]) == 0
    manifest: dict[str, Any] = json.loads(capsys.readouterr().out)
    return manifest


def stored(target: Path) -> dict[str, Tensor]:
    """Every tensor in the file."""
    tensors: dict[str, Tensor] = load_file(target / "model.safetensors")
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code_steps", "changes", "told_of_it"),
    [
        ("0", {"weight_scale", "weight"}, "tokens of bundled:docstrings (1 steps)"),
        ("10", {"weight_packed"}, "% of the codes were moved by a step for the outputs of blocks (10 steps each on 24"),
    ],
    ids=["scales", "codes"],
)
@pytest.mark.usefixtures("same_process")
def test_a_refined_model_is_proven_like_any_other(
    capsys: Any, small_study: SmallStudy, tmp_path: Path, code_steps: str, changes: set[str], told_of_it: str
) -> None:
    """Codes, or scales and norms, are others; manifest, card and notes say what was changed, on what and what for."""
    plain = written(capsys, tmp_path / "plain", *small_study.flags, *METHOD)
    refined = written(capsys, tmp_path / "refined", *small_study.flags, *METHOD, *REFINE, "--refine-codes", code_steps)
    before, after = stored(tmp_path / "plain"), stored(tmp_path / "refined")
    zeros = [name for name in before if name.endswith("zero_point")]
    assert same_bits({name: before[name] for name in zeros}, {name: after[name] for name in zeros})
    changed = {name.rpartition(".")[2] for name in before if not same_bits({name: before[name]}, {name: after[name]})}
    assert changed >= changes
    assert changed <= {"weight_packed", "weight_scale", "weight"}
    assert ("weight_packed" in changed) is (code_steps != "0")
    assert {name: tensor.dtype for name, tensor in before.items()} == {name: t.dtype for name, t in after.items()}
    assert plain["refinement"] is None
    assert (plain["stored_bits_per_weight"], plain["model_bytes"]) == (
        refined["stored_bits_per_weight"],
        refined["model_bytes"],
    )
    told = refined["refinement"]
    assert (told["source"], told["sequences"], told["steps"]) == ("bundled:docstrings", 24, 1)
    assert told["looks"][0]["step"] == 0
    if code_steps == "0":
        assert told["moves"] is None
    else:
        assert 0 < told["moves"]["share"] < 0.1
        assert told["looks"][0]["kl"] == pytest.approx(told["moves"]["after"], rel=1e-9)
        assert told["moves"]["after"] < told["moves"]["before"]
    assert [gain["source"] for gain in told["gains"]] == ["bundled:docstrings", "bundled:topics"]
    assert told["gains"][0]["kl"]["low"] <= told["gains"][0]["kl"]["difference"] <= told["gains"][0]["kl"]["high"]
    proof = refined["proof"]
    assert proof["packed"] == pytest.approx(proof["measured"], rel=1e-6)
    assert proof["packed"] != plain["proof"]["packed"]
    card = (tmp_path / "refined" / "README.md").read_text()
    assert "## Refined" in card
    assert told_of_it in card
    assert "| bundled:topics (tuning) | KL, nats | " in card
    assert "## Refined" not in (tmp_path / "plain" / "README.md").read_text()
    assert any("KL on 8 sequences of bundled:topics (tuning) is " in note for note in refined["notes"])


@pytest.mark.slow
@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize(
    ("kind", "left_out", "code_steps"),
    [("--symmetric", "awq", "0"), ("--asymmetric", None, "5")],
    ids=["scales", "codes"],
)
def test_every_format_holds_what_was_refined(
    capsys: Any, small_study: SmallStudy, tmp_path: Path, kind: str, left_out: str | None, code_steps: str
) -> None:
    """From one refinement: each file has the codes, scales and norms that were scored."""
    names = [name for name in FORMATS if name != left_out]
    setting = ["--method", "gw-awq", "--group-size", "32", kind, "--format", ",".join(names)]
    refine = [*REFINE, "--refine-codes", code_steps]
    formats = written(capsys, tmp_path / "models", *small_study.flags, *setting, *refine)["formats"]
    assert set(formats) == set(names)
    refinements = [manifest["refinement"] for manifest in formats.values()]
    assert all(refinement == refinements[0] for refinement in refinements)
    assert refinements[0]["kept_step"] > 0 or refinements[0]["moves"]["share"] > 0
    assert (refinements[0]["moves"] is None) == (code_steps == "0")
    for name, manifest in formats.items():
        proof = manifest["proof"]
        assert (proof is None) == (name == "dense")
        if proof is not None:
            assert proof["packed"] == pytest.approx(proof["measured"], rel=1e-3)
            assert proof["linears"] == 42
            assert "## Refined" in (tmp_path / "models" / name / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("same_process")
def test_a_plan_of_several_settings_is_refined(capsys: Any, small_study: SmallStudy, tmp_path: Path) -> None:
    """Each Linear by its own bits; what is told of it before is what the plan scores without refining."""
    table = tmp_path / "plan.csv"
    roles = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    roles += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    bits = {role: 8 if "down" in role else 4 for role in roles}
    lines = [f"model.layers.{block}.{role},gw-awq,{bits[role]},16,5" for block in range(6) for role in roles]
    table.write_text("\n".join(["linear,method,bits,n_calib,n_grid", *lines]) + "\n")
    made = [*small_study.flags[:4], "--plan", str(table), "--format", "compressed-tensors"]
    plain = written(capsys, tmp_path / "plain", *made)
    refined = written(capsys, tmp_path / "refined", *made, *REFINE, "--refine-codes", "5")
    assert (refined["method"], refined["bits_per_weight"]) == ("mixed", plain["bits_per_weight"])
    assert refined["refinement"]["moves"]["after"] < refined["refinement"]["moves"]["before"]
    assert refined["proof"]["packed"] == pytest.approx(refined["proof"]["measured"], rel=1e-6)
    before = refined["refinement"]["gains"][0]["nll"]["before"]
    assert math.exp(before) == pytest.approx(plain["proof"]["measured"], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--refine-rate", "0.01"], "--refine-rate given without --refine; add it, or leave them out"),
        (["--refine", "--refine-rate", "2"], "a refining rate of 2 is not between 0 and 1"),
        (["--refine", "--refine-samples", "0"], "--refine-samples 0 is less than 1"),
        (["--refine", "--refine-codes", "-1"], "--refine-codes -1 is less than 0"),
        (["--refine", "--refine-trials", "0"], "--refine-trials 0 is not from 1 to 100"),
        (["--refine", "--refine-drift", "0"], "--refine-drift 0 is not above 0 and at most 1"),
        (["--refine", "--refine-parts", "norms,zeros"], "--refine-parts has zeros; give some of scales,norms,biases"),
        (["--refine", "--refine-parts", "biases"], "has no biases to tune; add scales to --refine-parts biases"),
        (["--refine", "--refine-batch-tokens", "0"], "1 passes in steps of 0 tokens read nothing"),
        (["--refine-codes", "5"], "--refine-codes given without --refine; add it, or leave them out"),
        (["--refine", "--refine-samples", "2", "--refine-timeout", "1e-6"], "--refine-timeout 1e-06 is less than"),
        (["--refine", "--refine-timeout", "-1"], "--refine-timeout -1 is not above 0"),
        (["--refine", "--scales", "linear", "--format", "dense"], "use --scales foldable"),
        (
            ["--refine", "--refine-data", "bundled:topics", "--seq-len", "256", "--calib-data", "bundled:topics"],
            "bundled:topics has refinement text for ",
        ),
    ],
)
def test_what_cannot_be_refined_is_one_line_and_writes_nothing(
    capsys: Any, small_study: SmallStudy, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    """What was received, and the remedy."""
    target = tmp_path / "out"
    capsys.readouterr()
    assert cli.main(["quantize", *small_study.flags, *METHOD, *arguments, "--output-dir", str(target)]) == 2
    assert reason in capsys.readouterr().err
    assert not target.exists()


def test_what_cannot_be_refined_is_refused_before_bits_are_allocated(
    capsys: Any, small_study: SmallStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every site would have been measured for it."""
    monkeypatch.setattr("hpo.deploy.deploy.allocate", lambda *_: pytest.fail("sites were measured"))
    flags = [*small_study.flags, "--method", "gw-awq", "--budget", "4.6", "--format", "compressed-tensors"]
    line = refusal(
        capsys, "quantize", *flags, "--refine", "--refine-parts", "biases", "--output-dir", str(tmp_path / "out")
    )
    assert "has no biases to tune" in line


def test_text_that_is_not_the_studys_is_refused_before_anything_is_refined(
    capsys: Any, small_study: SmallStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its proof would be refused hours later."""
    monkeypatch.setattr("hpo.deploy.deploy.refined_bench", lambda *_: pytest.fail("codes were refined"))
    which = ["--study", "small", "--eval-samples", "9", "--format", "compressed-tensors"]
    line = refusal(capsys, "quantize", *which, *REFINE[:-1], "bundled:training", "--output-dir", str(tmp_path / "out"))
    assert "the tuning text" in line


@pytest.mark.slow
@pytest.mark.usefixtures("same_process")
def test_what_a_study_recommends_is_refined_and_confirmed(
    capsys: Any, small_study: SmallStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against what it was and the references, on text that no step has seen; what is written is that very model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hpo.commands.optimize.report_directory", lambda *_: None)
    space = ["--space", "original", "--group-size", "64", "--tau", "2", "--beta", "0.3..0.4"]
    where = ["--study", "refined", "--storage", f"sqlite:///{tmp_path}/studies.db"]
    refine = [*REFINE[:-1], "bundled:training", "--refine-passes", "3", "--refine-codes", "5", "--refine-trials", "2"]
    begun = ["optimize", "--trials", "5", *small_study.flags, *space, *where, *refine]
    capsys.readouterr()
    assert cli.main([*begun, "--json"]) == 0
    study = json.loads(capsys.readouterr().out)
    refined, recommended = study["refined"], study["recommendation"]["name"]
    assert refined["refined"] == recommended
    assert refined["sentence"].startswith(f"On held-out text {recommended} refined against {recommended}: KL ")
    assert {row["name"] for row in refined["comparisons"]} == {f"{recommended} refined"}
    assert {row["against"] for row in refined["comparisons"]} >= {recommended, "rtn", "gw-awq"}
    assert all(row["holm"] >= row["p_value"] for row in refined["comparisons"])
    kl = {(row["name"], row["dataset"]): row["kl"] for row in refined["rows"]}
    target = tmp_path / "written"
    packed = ["--format", "compressed-tensors"]
    manifest = written(capsys, target, "--study", "refined", *where[2:], *refine, *packed)
    gains = {gain["source"]: gain["kl"] for gain in manifest["refinement"]["gains"]}
    tried = manifest["refinement"]["trials"]
    assert (tried[0]["passes"], tried[0]["code_steps"]) == (3, 5)
    assert min(trial["kl"] for trial in tried) == pytest.approx(
        min(look["kl"] for look in manifest["refinement"]["looks"])
    )
    assert "the nearest of 2 refinements" in refined["tuned"]
    assert (target / "README.md").read_text().count("| 5 | 0.2 | scales, norms, biases | 0.003 | 2048 | 3 |") == 1
    for source, change in gains.items():
        assert change["before"] == pytest.approx(kl[recommended, source], rel=1e-9)
        assert change["after"] == pytest.approx(kl[f"{recommended} refined", source], rel=1e-9)
    assert cli.main(["show", *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["refined"] == refined


@pytest.mark.slow
@pytest.mark.parametrize("kind", [InputError, RunError])
def test_a_study_whose_winner_cannot_be_refined_has_its_report(
    capsys: Any, small_study: SmallStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """What was searched for hours is not lost because memory runs out in the end."""

    def refused(*_: Any) -> None:
        raise kind("refining bundled ran out of memory on cpu")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hpo.optimize.confirm_refined", refused)
    space = ["--space", "original", "--group-size", "64", "--tau", "2", "--beta", "0.3..0.4"]
    where = ["--study", "unrefined", "--storage", f"sqlite:///{tmp_path}/studies.db"]
    capsys.readouterr()
    assert (
        cli.main(["optimize", "--trials", "3", *small_study.flags, *space, *where, *REFINE[:-1], "bundled:training"])
        == 0
    )
    assert "not refined: refining bundled ran out of memory on cpu" in capsys.readouterr().err
    assert list(tmp_path.glob("reports/unrefined/report.md"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--presets-only"], "--presets-only confirms nothing that --refine could refine"),
        (["--method", "praq-mixed"], "praq-mixed keeps rows in 16 bit; use a method in groups"),
    ],
)
def test_a_study_of_which_nothing_can_be_refined_is_refused(capsys: Any, arguments: list[str], reason: str) -> None:
    """Before the model is loaded."""
    capsys.readouterr()
    assert cli.main(["optimize", *arguments, "--refine", "--study", "never"]) == 2
    assert reason in capsys.readouterr().err
