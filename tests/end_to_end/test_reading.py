"""Commands that read make nothing: not the storage that they were to read, and no directory for it."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import cli
from tests.conftest import SmallStudy

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


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When each file and folder was written, and what is in it."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *folder.rglob("*"))
    }


@pytest.fixture
def home(small_study: SmallStudy, tmp_path: Path) -> Path:
    """A copy of the small study's home that nobody writes to."""
    home = tmp_path / "home"
    shutil.copytree(small_study.home, home)
    return home


@pytest.mark.parametrize(
    "command", [["study", "ls"], ["show"], ["status"], ["report"], ["study", "export", "small"]], ids=" ".join
)
def test_reading_leaves_a_database_as_it_is(
    command: list[str], home: Path, capsys: Any, tmp_path: Path, no_pictures: None
) -> None:
    """Neither a byte nor a time changes, and no file appears beside it, so no permission to write is needed."""
    where = {"report": ["--out", str(tmp_path / "report")], "study": [str(tmp_path / "small.zip")] * (len(command) > 2)}
    before = tree(home)
    assert cli.main([*command, *where.get(command[0], []), "--cache", str(home)]) == 0
    assert capsys.readouterr().out
    assert tree(home) == before


def test_reading_sees_what_a_writer_that_lives_has_written(home: Path, capsys: Any) -> None:
    """What is still in the write-ahead log is read from there."""
    with sqlite3.connect(home / "studies.db") as writer:
        writer.execute("UPDATE studies SET study_name = 'other' WHERE study_name = 'small'")
        writer.commit()
        assert (home / "studies.db-wal").stat().st_size > 0
        assert cli.main(["study", "ls", "--cache", str(home)]) == 0
    writer.close()
    assert "other" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "holds no studies; begin one with `optimize`"), (b"no database" * 99, "file is not a database")],
)
@pytest.mark.parametrize("command", [["study", "ls"], ["show"]], ids=" ".join)
def test_a_file_that_holds_no_studies_is_one_line(
    command: list[str], content: bytes, reason: str, capsys: Any, tmp_path: Path
) -> None:
    """It is not made into a storage either."""
    (tmp_path / "s.db").write_bytes(content)
    assert cli.main([*command, "--cache", str(tmp_path), "--storage", f"sqlite:///{tmp_path}/s.db"]) in (1, 2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert reason in said
    assert (tmp_path / "s.db").read_bytes() == content
