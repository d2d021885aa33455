"""`quantize` through the command line: a directory that scores as it was measured, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import cli
from objectives.kept import pinned
from objectives.models import ModelPlan, load_model
from objectives.progress import silent
from objectives.scoring import score_all
from storage.paths import Paths
from storage.results import ResultStore
from tests.conftest import SmallStudy

METHOD = ["--method", "gw-awq", "--group-size", "64"]


@pytest.fixture(autouse=True)
def _home(small_study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRAQTUNE_HOME", str(small_study.home))


def printed(capsys: Any, *arguments: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    capsys.readouterr()
    assert cli.main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys: Any, *arguments: str, code: int = 2) -> str:
    """The one line with which `quantize` is refused."""
    capsys.readouterr()
    assert cli.main(["quantize", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("praqtune: ")
    return line


def test_a_method_is_written_as_it_was_measured(capsys: Any, small_study: SmallStudy, tmp_path: Path) -> None:
    """The directory loads like any other, in the model's type, and scores the method's perplexity."""
    target = tmp_path / "made" / "awq"
    found = printed(capsys, "quantize", *small_study.flags, *METHOD, "--output-dir", str(target))
    assert (found["method"], found["bits_per_weight"], found["directory"]) == ("gw-awq", 4.25, str(target))
    assert found["parameters"]["n_calib"] == 16
    assert found["disk_bytes"] == sum(path.stat().st_size for path in target.iterdir())
    assert {key: found[key] for key in ("method", "layers", "model")} == {
        key: json.loads((target / "praqtune.json").read_text())[key] for key in ("method", "layers", "model")
    }
    module = AutoModelForCausalLM.from_pretrained(target)
    assert str(module.dtype).removeprefix("torch.") == found["model"]["dtype"]
    measured = printed(capsys, "evaluate", *small_study.flags, *METHOD)["rows"]
    written = printed(capsys, "evaluate", *small_study.flags[:4], "--model", str(target), *text_flags())["rows"]
    expected = {row["dataset"]: row["perplexity"] for row in measured if row["setting"]}
    assert {row["dataset"]: row["perplexity"] for row in written} == pytest.approx(expected, rel=1e-3)


def text_flags() -> list[str]:
    """The bundled model's text, for a model that is none."""
    return ["--eval-data", "bundled:docstrings,bundled:topics"]


def test_the_best_trial_is_written_as_the_study_measured_it(
    capsys: Any, small_study: SmallStudy, tmp_path: Path
) -> None:
    """With nothing but the study's name: model, text and setting are its own."""
    best = printed(capsys, "show", "--study", "small")["best"]
    target = tmp_path / "best"
    found = printed(capsys, "quantize", "--study", "small", "--output-dir", str(target))
    reads = {"beta", "tau", "n_grid", "n_calib", "group_size"}
    assert {name: found["parameters"][name] for name in reads} == {name: best["params"][name] for name in reads}
    assert found["bits_per_weight"] == best["bits_per_weight"]
    assert found["notes"] == []
    contract = printed(capsys, "show", "--study", "small")["contract"]
    tuning = pinned(ResultStore(Paths(small_study.home).results), f"text-{contract['tuning']['fingerprint']}")
    model = load_model(ModelPlan(name=str(target), dtype=contract["model"]["dtype"]))
    assert score_all(model.module, tuning, "", silent).perplexity == pytest.approx(best["value"], rel=1e-3)


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
        ([], "give --method NAME, or --study NAME"),
        (["--study", "absent"], "there is no study 'absent'; there are: small"),
        (["--study", "small", "--trial", "99"], "study 'small' has no trial '99'; give best or a number (0 to 3)"),
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
    assert said in refusal(capsys, *arguments, "--output-dir", str(target))
    assert not target.exists()


def test_an_occupied_directory_is_refused_before_the_model_is_loaded(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies there stays, and the line names the flag."""
    (tmp_path / "mine.txt").write_text("mine")

    def loaded(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("hpo.deploy.load_bench", loaded)
    line = refusal(capsys, *METHOD, "--output-dir", str(tmp_path), code=1)
    assert "exists already; choose another --output-dir" in line
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_flags_of_mixed_methods_reach_what_is_written(capsys: Any, small_study: SmallStudy, tmp_path: Path) -> None:
    """All five of them are in the record of the method that reads them."""
    given = ["--keep-ratio", "0.05", "--beta-risk", "2", "--tau-risk", "-1", "--noise-factor", "0.3"]
    arguments = [*given, "--variance-penalty", "0.7", "--method", "praq-mixed-var"]
    target = str(tmp_path / "mixed")
    found = printed(capsys, "quantize", *small_study.flags, *arguments, "--output-dir", target)
    expected = {"keep_ratio": 0.05, "beta_risk": 2, "tau_risk": -1, "noise_factor": 0.3, "variance_penalty": 0.7}
    assert expected.items() <= found["parameters"].items()
    assert 4 < found["bits_per_weight"] < 5
