"""Standard output takes every character, and where it takes none that is one line."""

import io
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from hpo.commands.output import make_table, output
from hpo.commands.streams import require_output, take_any_character, transliterated
from objectives.errors import InputError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        ("plain", "ascii", "plain"),
        ("β – τ ≥ é", "ascii", "beta - tau >= e"),
        ("β – é", "latin-1", "beta - é"),
        ("β – é 漢", "utf-8", "β – é 漢"),
        ("漢 \ud83d", "ascii", "? ?"),
        ("\udcff", "utf-8", "?"),
    ],
)
def test_what_an_encoding_lacks_is_written_with_what_it_has(text: str, encoding: str, expected: str) -> None:
    """Signs and letters get their usual names, accents go, and what has no name is a question mark."""
    assert transliterated(text, encoding) == expected


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("json", [None, "-"])
def test_tables_and_notes_go_to_any_encoding(encoding: str, json: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names with marks of any kind are printed, not interpreted, and JSON keeps its meaning by escapes."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    take_any_character()
    table = make_table("β", "[/]")
    table.add_row("étude – 漢", "[red]1[/]")
    output(Namespace(json=json), {"name": "étude – β 漢"}, ["≥ [bold] 3"], table)
    said = raw.getvalue().decode(encoding)
    if json:
        assert "tude" in said
        assert __import__("json").loads(said) == {"name": "étude – β 漢"}
    else:
        assert "[red]1[/]" in said
        assert "[bold] 3" in said


def test_a_closed_standard_output_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the result has another place."""
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(InputError, match="standard output is closed, so the result would be lost"):
        require_output(None)
    require_output("result.json")
    assert sys.stdout is not None
    sys.stdout.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_standard_output_is_one_line(tmp_path: Path) -> None:
    """Neither a traceback nor what the interpreter says of a buffer that it could not write."""
    with open("/dev/full", "wb") as full:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(ROOT / "cli.py"), "cache", "ls", "--cache", str(tmp_path)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "praqtune: cannot write to standard output: No space left on device; send it elsewhere, or add --json FILE\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_standard_error_does_not_end_the_work(tmp_path: Path) -> None:
    """What is said there is not the result, and the exit code is that of the result."""
    program = "from hpo.standard_error import say; say('lost'); say('lost, too'); print('result')"
    with open("/dev/full", "wb") as full:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, "result\n")
