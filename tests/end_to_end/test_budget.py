"""Bits where they count, through the command line: a budget becomes a plan, a plan a model, and files are plans."""

from pathlib import Path
from typing import Any

import pytest

import cli
import objectives.sensitivity
from tests.commands import printed, refusal

SMALL = ["--seq-len", "32", "--eval-samples", "9", "--eval-data", "bundled:docstrings", "--quiet"]
FLAGS = [*SMALL, "--dtype", "float32"]
RTN = ["--method", "rtn", "--n-calib", "4"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("budget")


@pytest.fixture(autouse=True)
def _small(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRAQTUNE_HOME", str(home / "home"))
    monkeypatch.setattr(objectives.sensitivity, "TOKENS", 60)


@pytest.mark.slow
@pytest.mark.usefixtures("same_process")
def test_a_budget_becomes_a_packed_model_and_its_record_a_plan(capsys: Any, home: Path) -> None:
    """It scores what was measured, keeps the budget, says what is where, and is measured again from its record."""
    target = home / "packed"
    arguments = [*FLAGS, *RTN, "--budget", "5", "--format", "compressed-tensors", "--output-dir", str(target)]
    written = printed(capsys, "quantize", *arguments)
    assert written["method"] == "mixed"
    assert 4.9 < written["bits_per_weight"] <= 5
    assert written["stored_bits_per_weight"] == pytest.approx(written["bits_per_weight"], abs=0.02)
    assert written["proof"]["packed"] == pytest.approx(written["proof"]["measured"], rel=1e-3)
    assert sum(len(setting["linears"]) for setting in written["settings"]) == 42
    assert {setting["parameters"]["bits"] for setting in written["settings"]} >= {4, 8}
    assert written["notes"][0].startswith("bits are allocated to 24 sites by what each loses, measured on 62 tokens")
    card = (target / "README.md").read_text()
    assert "| stored as | Linears |" in card
    assert "| 8 bit g128 | " in card
    from_record = printed(capsys, "evaluate", *FLAGS, "--plan", str(target / "praqtune.json"))["rows"][1]
    from_budget = printed(capsys, "evaluate", *FLAGS, *RTN, "--budget", "5")["rows"][1]
    for row in (from_record, from_budget):
        assert row["perplexity"] == pytest.approx(written["proof"]["measured"])
        assert row["bits_per_weight"] == written["bits_per_weight"]
        assert row["method"].startswith("rtn (4 bit g")
        assert row["setting"] is None
        assert row["plan"] == written["settings"]
    # An edited table is another plan.
    table = home / "plan.csv"
    lines = [f"{name},rtn,{'8' if 'down' in name else '4'}" for name in every_linear(written)]
    table.write_text("\n".join(["linear,method,bits", *lines]) + "\n")
    own = printed(capsys, "evaluate", *FLAGS, "--plan", str(table))["rows"][1]
    assert own["method"] == "rtn (4 bit g128, 8 bit g128)"
    assert own["bits_per_weight"] > from_budget["bits_per_weight"]
    assert own["kl"]["value"] > from_budget["kl"]["value"]
    made = printed(capsys, "quantize", *FLAGS, "--plan", str(table), "--output-dir", str(home / "own"))
    assert made["bits_per_weight"] == own["bits_per_weight"]


def every_linear(written: dict[str, Any]) -> list[str]:
    return [name for setting in written["settings"] for name in setting["linears"]]


@pytest.mark.slow
def test_a_budget_is_printed_for_people(capsys: Any) -> None:
    """The row says what weights are stored as, and the note what was predicted."""
    assert cli.main(["evaluate", *FLAGS, *RTN, "--budget", "5MB"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "rtn (4 bit g" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*RTN, "--budget", "much"], "the budget 'much' cannot be read; give bits per weight of the decoder blocks"),
        ([*RTN, "--budget", "3"], "3 bits per weight cannot be allocated: plans take from 4.125 bits per weight ("),
        ([*RTN, "--budget", "1GB"], "1000.00 MB cannot be allocated: plans take from 4.125 bits per weight ("),
        (
            [*RTN[2:], "--method", "awq-mixed", "--budget", "5"],
            "cannot be allocated bits, because it keeps weights in 16 bit",
        ),
        (["--plan", "absent.json"], "plan file absent.json cannot be read"),
        (["--plan", "absent.json", "--budget", "5"], "a plan has bits already; give either --plan, or --budget"),
    ],
)
def test_what_cannot_be_is_one_line(capsys: Any, arguments: list[str], said: str, tmp_path: Path) -> None:
    """In both commands, with both limits where a budget is outside; nothing is written."""
    assert said in refusal(capsys, "evaluate", *FLAGS, *arguments)
    target = tmp_path / "out"
    assert said in refusal(capsys, "quantize", *FLAGS, *arguments, "--output-dir", str(target))
    assert not target.exists()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ["model.layers.9.mlp.up_proj,rtn,4"],
            "settings for model.layers.9.mlp.up_proj, which the decoder blocks of this model do not have",
        ),
        (["model.layers.0.mlp.up_proj,rtn,4"], "the plan has no setting for model.layers.0.self_attn.q_proj, "),
    ],
)
def test_a_plan_for_another_model_is_one_line(capsys: Any, lines: list[str], said: str, tmp_path: Path) -> None:
    """Unknown and missing Linears."""
    table = tmp_path / "plan.csv"
    table.write_text("\n".join(["linear,method,bits", *lines]))
    assert said in refusal(capsys, "evaluate", *FLAGS, "--plan", str(table))


def test_what_the_format_cannot_hold_is_known_at_once(capsys: Any, tmp_path: Path) -> None:
    """Before any site is measured: transformers reads one scheme with zero points, not several."""
    arguments = [
        *RTN,
        "--asymmetric",
        "--budget",
        "5",
        "--format",
        "compressed-tensors",
        "--output-dir",
        str(tmp_path / "out"),
    ]
    line = refusal(capsys, "quantize", *SMALL, "--dtype", "float32", "--seed", "3", *arguments)
    assert "schemes where one has zero points; use --symmetric for all Linears" in line


@pytest.mark.parametrize("form", ["gguf", "gptq", "dense,awq"])
def test_formats_of_one_scheme_have_no_budgets(
    capsys: Any, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the group sizes are; that needs no model."""

    def loaded(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("hpo.deploy.deploy.load_bench", loaded)
    flags = [*FLAGS, "--method", "gw-awq", "--budget", "4.3", "--format", form, "--output-dir", str(tmp_path / "out")]
    said = "has one scheme for all Linears, and plans under a budget have several; give --format compressed-tensors, or"
    assert f"--format {form.partition(',')[2] or form} {said}" in refusal(capsys, "quantize", *flags)


def test_a_plan_or_a_method_or_a_study(capsys: Any, tmp_path: Path) -> None:
    """One of them says how to quantize."""
    target = ["--output-dir", str(tmp_path / "out")]
    beside = "a plan has settings of its own, and {} is given beside it; leave one of them out"
    assert beside.format("--method, --n-calib") in refusal(capsys, "quantize", *RTN, "--plan", "plan.csv", *target)
    assert beside.format("--n-grid") in refusal(capsys, "quantize", "--n-grid", "5", "--plan", "plan.csv", *target)
    assert beside.format("--study") in refusal(capsys, "quantize", "--study", "s", "--plan", "plan.csv", *target)
    assert "--budget needs a recipe" in refusal(capsys, "evaluate", "--model", "x", "--budget", "5")
    assert "give --method NAME, --plan FILE or --study NAME" in refusal(capsys, "quantize", "--budget", "5", *target)


@pytest.mark.parametrize(
    ("linear", "values", "said"),
    [
        (
            "self_attn.q_proj",
            "rtn,8,128",
            "make one matrix of model.layers.0.self_attn.q_proj, model.layers.0.self_attn.",
        ),
        (
            "self_attn.o_proj",
            "rtn,4,80",
            "cannot hold the partial last group that a group size of 80 leaves of 256 inputs",
        ),
        ("mlp.down_proj", "rtn,3,128", "has weights of 4 or 8 bits, not of 3"),
    ],
)
def test_a_plan_that_cannot_be_stored_is_one_line(
    capsys: Any, linear: str, values: str, said: str, tmp_path: Path
) -> None:
    """Linears that runtimes fuse and that differ, groups that do not divide the inputs, bits that no runtime reads."""
    roles = [f"self_attn.{role}_proj" for role in "qkvo"] + [f"mlp.{role}_proj" for role in ("gate", "up", "down")]
    names = [f"model.layers.{depth}.{role}" for depth in range(6) for role in roles]
    rows = [f"{name},{values if name == f'model.layers.0.{linear}' else 'rtn,4,128'}" for name in names]
    table, target = tmp_path / "plan.csv", tmp_path / "out"
    table.write_text("\n".join(["linear,method,bits,group_size", *rows]))
    arguments = [*FLAGS, "--plan", str(table), "--format", "compressed-tensors", "--output-dir", str(target)]
    line = refusal(capsys, "quantize", *arguments)
    assert said in line
    assert not target.exists()
