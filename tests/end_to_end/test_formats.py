"""Studies of other formats: those that are read open with the numbers that they were stored with, others are refused.

The golden files are made by `tests/golden/make_study.py`.
"""

import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest

import cli
from hpo.study.attributes import CONTRACT
from hpo.study.contract import FORMAT

GOLDEN = Path(__file__).parents[1] / "golden"
OLDER = {"format": 2, "model": {"name": "m"}, "space": {"beta": "0..1", "group_size": "32,64"}, "seed": 0}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage and a home of its own."""
    monkeypatch.setenv("PRAQTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PRAQTUNE_STORAGE", f"sqlite:///{tmp_path}/study.db")
    monkeypatch.chdir(tmp_path)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command prints with `--json`."""
    capsys.readouterr()
    assert cli.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def content(path: Path) -> list[str]:
    """Everything that a database holds."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        return list(database.iterdump())


def test_the_current_format_has_a_golden_file() -> None:
    """Whoever raises the number makes the file."""
    assert (GOLDEN / f"study-format-{FORMAT}.zip").exists()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("*.zip")), ids=lambda path: path.stem)
def test_a_golden_study_opens(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With all trials, references, the confirmation and the ranking, digit by digit; and it has a report."""
    assert cli.main(["study", "import", str(golden)]) == 0
    status = printed(capsys, "status")
    assert status["model"] == "bundled"
    assert status["trials"] == {"COMPLETE": 7, "PRUNED": 5, "FAIL": 1, "WAITING": 1}
    assert status["last_failure"] == "2.0 GB are needed, 1.5 GB are available"
    assert status["tuning_text"] == "24 sequences of bundled:docstrings (packed)"

    study = printed(capsys, "show")
    assert study["contract"]["format"] == FORMAT
    assert [dimension["name"] for dimension in study["contract"]["space"]["dimensions"]] == [
        *("beta", "tau", "n_grid", "n_calib", "group_size")
    ]
    assert (study["best"]["name"], study["best"]["value"]) == ("trial 5", 36.373736808005184)
    assert study["best"]["params"]["tau"] == 0.184
    assert Counter(reference["name"] for reference in study["references"])["gw-awq"] == 2
    assert study["trials"][11]["estimate"]["perplexity"] == pytest.approx(36.97131900376928)
    # Held-out text does not confirm the winner, trial 5.
    assert [level["recommended"] for level in study["ranking"]] == ["rtn", "praq-leaning (projected)"]
    assert (study["recommendation"]["name"], study["recommendation"]["confirmed"]) == ("rtn", "not confirmed")
    assert study["ranking"][0]["rows"][1]["percent_above_best"]["high"] == pytest.approx(0.6691944563595444)
    assert study["confirmation"]["winner"] == "trial 5"

    assert cli.main(["report", "--out", "report"]) == 0
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "| β, blend of saliences" not in text
    assert "| space › beta | 0..1 |" in text
    assert "--group-size 64,128" in text


@pytest.mark.parametrize(
    "command",
    [
        ["status", "--json"],
        ["show"],
        ["report"],
        ["quantize", "--study", "old", "--output-dir", "out"],
        ["study", "export", "old", "old.zip"],
        ["study", "retry", "old"],
        ["optimize", "--study", "old", "--eval-samples", "8", "--seq-len", "64", "--n-calib", "16"],
    ],
    ids=lambda command: command[1] if command[0] == "study" else command[0],
)
def test_a_study_of_an_older_format_is_refused_with_both_versions(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, and nothing in the storage or beside it changes."""
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(storage=url, study_name="old").set_user_attr(CONTRACT, OLDER)
    before = content(tmp_path / "study.db")
    assert cli.main(command) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("praqtune: study")]
    assert error == [
        f"praqtune: study 'old' is of format 2, and this version of praqtune reads format {FORMAT}; read it with the "
        "version that made it, or begin another with --study NAME"
    ]
    assert content(tmp_path / "study.db") == before
    assert not [path.name for path in tmp_path.iterdir() if path.name in ("out", "old.zip", "reports")]


def test_a_study_of_an_older_format_can_be_listed_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And repairing all studies of a storage leaves it alone."""
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(storage=url, study_name="old").set_user_attr(CONTRACT, OLDER)
    listed = printed(capsys, "study", "ls")["studies"]
    assert [(study["name"], study["model"], study["format"]) for study in listed] == [("old", "m", 2)]
    assert printed(capsys, "study", "repair")["repaired"] == []
    assert cli.main(["study", "rm", "old"]) == 0
    assert optuna.get_all_study_names(url) == []
