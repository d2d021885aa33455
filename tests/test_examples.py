"""Every example runs as its docstring says, each in a process and a home of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tests.conftest import SmallStudy
from tests.processes import finish, run_script, start

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
PATIENCE = 300


def run_quickly(home: Path, name: str, *arguments: str) -> str:
    """What an example prints that starts no processes, in one that has imported everything before."""
    output = home / name
    assert finish(start(run_script, EXAMPLES / name, home, arguments, output)) == [0], output.with_suffix(".err")
    return output.with_suffix(".out").read_text()


def run(home: Path, name: str, *arguments: str) -> str:
    """What an example prints."""
    environment = {"PRAQTUNE_HOME": str(home), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env={name: value for name, value in os.environ.items() if name != "PRAQTUNE_STORAGE"} | environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_method_of_ones_own_is_measured_beside_others(tmp_path: Path) -> None:
    """Full precision first, and the new row last."""
    lines = run_quickly(tmp_path, "own_method.py").splitlines()
    assert [line.split()[0] for line in lines] == ["full", "rtn", "gw-praq", "praq-by-mean"]
    assert "nats per token" in lines[-1]


def test_a_study_is_read_as_a_table(small_study: SmallStudy) -> None:
    """States, the best of each group size, seconds, and rows with a heading."""
    printed = run_quickly(small_study.home, "read_with_pandas.py", "small")
    assert "COMPLETE" in printed
    assert "seconds_quantize" in printed
    assert "number,state,perplexity,started,finished\n0," in printed


@pytest.mark.slow
def test_a_study_ends_in_a_packed_model(tmp_path: Path) -> None:
    """Six trials, and a directory that says what it scored."""
    printed = run(tmp_path, "tune_and_deploy.py", str(tmp_path / "made"))
    assert printed.count(": COMPLETE") + printed.count(": PRUNED") == 6
    record = json.loads((tmp_path / "made" / "praqtune.json").read_text())
    assert record["weights"] == "compressed-tensors"
    assert record["proof"]["packed"] == pytest.approx(record["proof"]["measured"], rel=1e-3)


@pytest.mark.slow
def test_a_launcher_of_ones_own_runs_a_study_to_its_end(tmp_path: Path) -> None:
    """Eight trials, told of by the process that started the workers; those before its first look are no news."""
    printed = run(tmp_path, "own_launcher.py")
    assert "trial 7: " in printed
    found = optuna.load_study(study_name="example", storage=f"sqlite:///{tmp_path}/studies.db")
    states = {TrialState.COMPLETE, TrialState.PRUNED}
    assert [trial.state in states for trial in found.trials] == [True] * 8
    assert {trial.user_attrs["owner"]["name"] for trial in found.trials} <= {"pool-0", "pool-1"}


@pytest.mark.slow
def test_ready_made_models_are_compared(tmp_path: Path) -> None:
    """Two directories and plain rounding at equal bits, and what is recommended."""
    printed = run(tmp_path, "compare_models.py")
    rows = {line.split()[0]: line.split()[-2] for line in printed.splitlines() if line.endswith(" bits")}
    assert {rows[name] for name in ("rtn", "my-gw-praq", "my-gwh-praq-v2")} == {"4.25"}
    assert printed.splitlines()[-1].startswith("At 4.250 bits per weight: ")


def test_every_example_is_short_and_says_how_it_is_run() -> None:
    """An example is read before it is run."""
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert f"python examples/{path.name}" in text.split('"""')[1], path.name
        assert text.count("\n") < 50, path.name
