"""`compare` through the command line: what programs and people read, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import cli
from quant.methods import METHODS
from tests.commands import refusal
from tests.conftest import SmallStudy

DATASETS = ["bundled:docstrings", "bundled:topics"]


@pytest.fixture(autouse=True)
def _home(small_study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRAQTUNE_HOME", str(small_study.home))


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def compared(capsys: Any, *arguments: str) -> dict[str, Any]:
    """What `compare` prints as JSON."""
    capsys.readouterr()
    assert cli.main(["compare", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=refuse)
    return found


@pytest.mark.parametrize("methods", [["rtn", "gw-awq"], pytest.param(list(METHODS), marks=pytest.mark.slow)])
def test_methods_on_two_data_sets(capsys: Any, small_study: SmallStudy, tmp_path: Path, methods: list[str]) -> None:
    """One command: rows, pairs, gaps, recommendation as JSON, CSV, pictures, a page, and tables for people."""
    out = {name: tmp_path / name for name in ("rows.json", "rows.csv", "page")}
    files = ["--json", str(out["rows.json"]), "--csv", str(out["rows.csv"]), "--plots", str(out["page"])]
    listed = "all" if methods == list(METHODS) else ",".join(methods)
    assert cli.main(["compare", "--methods", listed, *small_study.flags, *files]) == 0
    text = capsys.readouterr().out
    found = json.loads(out["rows.json"].read_text(), parse_constant=refuse)
    names = ["full precision", *methods]
    assert [(row["dataset"], row["method"]) for row in found["rows"]] == [(d, m) for d in DATASETS for m in names]
    assert len(found["pairs"]) == 2 * len(names) * (len(names) - 1) / 2
    assert all(pair["holm"] >= pair["p_value"] for pair in found["pairs"])
    assert [gap["method"] for gap in found["gaps"]] == methods
    for row in found["rows"]:
        assert row["tokens"] == 8 * 63
        assert row["dense_tokens_per_second"] > 0
        assert (row["rank"] is None) == (row["method"] == "full precision")
    levels = found["recommendation"]["levels"]
    assert sorted(name for level in levels for name in level["rows"]) == sorted(methods)
    assert all(level["recommended"] in level["rows"] for level in levels)
    table = pd.read_csv(out["rows.csv"])
    assert table["perplexity"].tolist() == pytest.approx([row["perplexity"] for row in found["rows"]])
    assert {path.name for path in out["page"].iterdir()} == {
        "index.html",
        *(f"{name}.png" for name in ("perplexity", "increase", "bits", "generalisation")),
    }
    for part in (*methods, *DATASETS, "tokens/s of the dense model", "Generalisation", found["notes"][0], "page: "):
        assert part in text, part


def test_a_study_and_ready_made_models_are_rows_besides(capsys: Any, small_study: SmallStudy, tmp_path: Path) -> None:
    """What `quantize` wrote scores and diverges as its method does, with its packed bits."""
    made = tmp_path / "made"
    setting = [*small_study.flags[:6], "--keep-ratio", "0.1"]
    assert cli.main(["quantize", *setting, "--method", "praq-mixed", "--output-dir", str(made)]) == 0
    models = ["--models", f"mine={made}", "--study", "small", "--trial", "best"]
    found = compared(capsys, "--methods", "rtn,praq-mixed", *setting, *models)
    best = [row for row in found["rows"] if row["kind"] == "trial"]
    assert len(best) == 2
    assert best[0]["method"].endswith(" of small")
    rows = {(row["method"], row["dataset"]): row for row in found["rows"]}
    for dataset in DATASETS:
        mine, method = rows["mine", dataset], rows["praq-mixed", dataset]
        assert mine["perplexity"] == pytest.approx(method["perplexity"], rel=1e-3)
        assert mine["kl"] == pytest.approx(method["kl"], rel=1e-2)
        assert mine["kl"]["value"] > 0
        assert (mine["bits_per_weight"], mine["model_mb"]) == (method["bits_per_weight"], method["model_mb"])
        assert mine["setting"]["keep_ratio"] == 0.1
    assert any("was chosen for its perplexity on text of bundled:docstrings" in note for note in found["notes"])


def test_data_sets_may_be_files_and_the_first_is_in_distribution(
    capsys: Any, small_study: SmallStudy, tmp_path: Path
) -> None:
    """The order is that of the flag; calibration on other text than the first data set's is said."""
    documents = [
        f"Document {number} is about the number {number} and the way to {number + 7}." * 6 for number in range(60)
    ]
    (tmp_path / "mine.txt").write_text("\n\n".join(documents))
    datasets = f"{tmp_path / 'mine.txt'},bundled:topics"
    flags = ["--methods", "rtn", "--datasets", datasets, "--calib-data", "bundled:docstrings", *small_study.flags[:6]]
    found = compared(capsys, *flags)
    assert [row["dataset"] for row in found["rows"]][::2] == datasets.split(",")
    assert [gap["cross_dataset"] for gap in found["gaps"]] == ["bundled:topics"]
    assert found["recommendation"]["dataset"] == str(tmp_path / "mine.txt")
    assert any("in-distribution in name only" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "rtn,gptq"], "method 'gptq' is unknown; choose one of rtn, rtn-channel, awq"),
        (["--models", "./dir"], "--models './dir' is not of the form NAME=DIR"),
        (["--models", "awq=./dir"], "awq is the name of a method"),
        (["--models", "mine=./dir"], "dir of --models is not a directory; give the directory of a model"),
        (["--study", "absent"], "there is no study 'absent'; there are: small"),
        (["--datasets", "absent.txt"], "absent.txt is not a file"),
        (["--keep-ratio", "-1"], "keep_ratio -1.0 is outside 0..1"),
        (["--methods", "rtn,gw-awq", "--tau", "2"], "none of rtn, gw-awq reads tau; leave --tau out"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    capsys: Any, small_study: SmallStudy, arguments: list[str], said: str
) -> None:
    """What was received, what is allowed, and no traceback."""
    assert said in refusal(capsys, "compare", *small_study.flags, *arguments)


def test_a_csv_that_cannot_be_written_is_a_failure(capsys: Any, small_study: SmallStudy, tmp_path: Path) -> None:
    """Exit code 1 and the path."""
    path = str(tmp_path / "no" / "rows.csv")
    assert path in refusal(capsys, "compare", "--methods", "rtn", *small_study.flags[:6], "--csv", path, code=1)
