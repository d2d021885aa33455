"""What is printed where: quiet, without colours, again and again."""

import re

import pytest
from rich.console import Console

import cli
from hpo.commands import status
from tests.conftest import SmallStudy

ESCAPE = "\x1b["


@pytest.fixture(autouse=True)
def home(small_study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRAQTUNE_HOME", str(small_study.home))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each pause was; the third is interrupted, as by Ctrl-C."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(status, "sleep", sleep)
    return pauses


def test_watching_without_a_terminal_prints_a_line_per_change(
    looks: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Three looks at a study that stands still are one line; Ctrl-C ends it as if it were done."""
    assert cli.main(["status", "--study", "small", "--watch"]) == 0
    out = capsys.readouterr().out
    assert looks == [2.0, 2.0, 2.0]
    assert len(out.splitlines()) == 1
    assert out.startswith("small: 4 complete | group size 128: ")


def test_watching_on_a_terminal_renews_the_table(
    looks: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert cli.main(["status", "--study", "small", "--watch", "0.5"]) == 0
    out = capsys.readouterr().out
    assert looks == [0.5, 0.5, 0.5]
    assert ESCAPE in out
    assert out.count("tuning text") >= 3


@pytest.mark.parametrize("arguments", [["--watch", "0"], ["--watch", "-1"], ["--watch", "1", "--json"]])
def test_watching_what_cannot_be_watched_is_wrong_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One line."""
    assert cli.main(["status", "--study", "small", *arguments]) == 2
    assert "--watch takes seconds above 0" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_quiet_leaves_the_result_and_nothing_else(small_study: SmallStudy, capsys: pytest.CaptureFixture[str]) -> None:
    """No line per trial, no notice on standard error; without it there were some."""
    command = ["optimize", "--presets-only", *small_study.space, *small_study.flags]
    assert cli.main([*command, "--study", "small-quiet", "--quiet"]) == 0
    quiet = capsys.readouterr()
    assert quiet.err == ""
    assert "Recommended at group size" in quiet.out
    assert "[4/4]" in small_study.told.read_text()


def test_no_color_is_honoured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where a terminal would show colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert Console().color_system is not None
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.main(["status", "--study", "small"]) == 0
    # Bold is no colour, and may stay.
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", capsys.readouterr().out)
    assert Console().color_system is None or Console().no_color
