"""Commands that read make nothing: not the storage that they were to read, and no directory for it."""

from pathlib import Path
from typing import Any

import pytest

import cli

READERS = (["status"], ["show"], ["report"], ["study", "export", "mine", "mine.zip"], ["study", "rm", "mine"])
READERS += (["study", "repair"], ["study", "retry", "mine"], ["study", "upgrade"], ["status", "--watch", "1"])


@pytest.mark.parametrize("command", READERS, ids=" ".join)
@pytest.mark.parametrize("scheme", ["sqlite:///", "journal:"])
def test_a_storage_that_does_not_exist_is_not_made_by_reading(
    command: list[str], scheme: str, capsys: Any, tmp_path: Path
) -> None:
    """It is named, in one line, with what begins a study."""
    url = f"{scheme}{tmp_path / 'deep' / 'none'}"
    assert cli.main([*command, "--cache", str(tmp_path / "home"), "--storage", url]) == 2
    said = capsys.readouterr().err
    assert said == f"praqtune: storage {url} does not exist; begin a study with `optimize`, or check --storage\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["sqlite:///", "journal:"])
def test_a_storage_that_does_not_exist_holds_no_studies(scheme: str, capsys: Any, tmp_path: Path) -> None:
    """Listing them says so, and makes none."""
    url = f"{scheme}{tmp_path / 'deep' / 'none'}"
    assert cli.main(["study", "ls", "--cache", str(tmp_path / "home"), "--storage", url]) == 0
    assert f"0 studies\nstorage {url} does not exist; `optimize` makes it" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
