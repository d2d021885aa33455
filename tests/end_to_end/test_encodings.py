"""Every command writes to a standard output of any encoding, whatever its studies are named."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

import cli
from hpo.commands.parser import COMMANDS
from tests.conftest import SmallStudy

NAME = "étude β – 漢"
ENCODINGS = ("ascii", "latin-1")
HELP = [[*command, "--help"] for command in ([], *([name] for name in COMMANDS), ["study", "ls"], ["cache", "ls"])]
READING = (
    ["study", "ls"],
    ["show"],
    ["status"],
    ["report", "--out", "@/report β"],
    ["study", "export", NAME, "@/étude.zip"],
)
READING += (["study", "repair"], ["study", "retry", NAME], ["cache", "ls"], ["cache", "verify"], ["completion", "bash"])
READING += (["show", "--study", "ü β 漢"], ["study", "import", "@/no β.zip"])


def run(encoding: str, *command: str) -> tuple[int, str]:
    """The exit code, and what the command wrote to standard output and standard error of an encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in zip(("stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        try:
            code = cli.main(command)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return code, "".join(stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def home(small_study: SmallStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small study's home, and its study once more under a name that no 8-bit encoding has."""
    home = tmp_path_factory.mktemp("étude β") / "home"
    shutil.copytree(small_study.home, home)
    assert cli.main(["study", "export", "small", str(home / "small.zip"), "--cache", str(home)]) == 0
    assert cli.main(["study", "import", str(home / "small.zip"), "--as", NAME, "--cache", str(home)]) == 0
    return home


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_help_goes_to_any_encoding(command: list[str], encoding: str) -> None:
    """Of every command, and of some of their actions."""
    code, said = run(encoding, *command)
    assert code == 0
    assert "usage: praqtune" in said


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_what_reads_goes_to_any_encoding(
    command: list[str], home: Path, encoding: str, tmp_path: Path, no_pictures: None
) -> None:
    """A result, or one line that refuses."""
    given = [part.replace("@", str(tmp_path)) for part in command]
    named = ["--study", NAME] if command[0] in {"show", "status", "report"} and "--study" not in command else []
    code, said = run(encoding, *given, *named, "--cache", str(home))
    refused = "ü β 漢" in command or command[1:2] == ["import"]
    assert code == (2 if refused else 0)
    assert said.startswith("praqtune: ") == refused
    if command == ["study", "ls"]:
        assert "tude beta - ?" in said


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_measures_goes_to_any_encoding(
    small_study: SmallStudy, home: Path, encoding: str, tmp_path: Path, same_process: None, no_pictures: None
) -> None:
    """Text of a file with a name that the encoding lacks is named in tables, notes and progress."""
    text = home.parent / "größe β.jsonl"
    rows = [{"text": f"{number} " + "def f(a): return a\n" * 40} for number in range(60)]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--cache", str(home), "--seq-len", "64", "--eval-data", str(text), "--calib-data", "bundled:docstrings"]
    flags = [*small_study.flags[:6], *data]
    small = ["--space", "original", "--group-size", "64", "--n-grid", "5", "--trials", "1"]
    commands = (
        ["evaluate", *flags, "--method", "rtn"],
        ["calibrate", *data, "--sizes", "16"],
        ["compare", *flags, "--methods", "rtn", "--study", NAME, "--csv", str(tmp_path / "β.csv")],
        ["quantize", *flags, "--method", "rtn", "--output-dir", str(tmp_path / "größe β")],
        ["optimize", *flags, *small, "--study", f"größe β {encoding}", "--out", str(tmp_path / "report")],
    )
    for command in commands:
        code, said = run(encoding, *command)
        assert code == 0, (command, said)
    assert "gr??e" not in said
