"""Everything lies below one home directory, which is made when it is needed and refused in one line otherwise."""

import os
from pathlib import Path

import pytest

from storage.errors import StorageError
from storage.paths import Paths

VARIABLES = ("PRAQTUNE_HOME", "XDG_CACHE_HOME", "HOME")


@pytest.mark.parametrize(
    ("environment", "home"),
    [
        ({"PRAQTUNE_HOME": "/named", "XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/named"),
        ({"XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/xdg/praqtune"),
        ({"HOME": "/home/me"}, "/home/me/.cache/praqtune"),
        ({"PRAQTUNE_HOME": "", "XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/praqtune"),
    ],
)
def test_the_home_comes_from_the_environment(
    environment: dict[str, str], home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project's own variable wins, then the user's cache directory; empty variables count as unset."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Paths.default() == Paths(Path(home))


def test_directories_are_distinct_and_not_created_before_they_are_needed(tmp_path: Path) -> None:
    """Naming a path touches nothing."""
    paths = Paths(tmp_path / "home")
    named = {paths.calibration, paths.leases, paths.results}
    assert len(named) == 3
    assert all(path.parent == paths.home for path in named)
    assert not paths.home.exists()


def test_create_makes_parents_and_may_be_repeated(tmp_path: Path) -> None:
    """Two processes may create the same directory."""
    directory = tmp_path / "a" / "b" / "c"
    assert Paths.create(directory) == directory == Paths.create(directory)
    assert directory.is_dir()


@pytest.mark.parametrize("below", ["", "cache", "cache/calibration"])
def test_a_directory_that_cannot_be_made_is_refused_in_one_line(below: str, tmp_path: Path) -> None:
    """A regular file in the way is named together with the remedy."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError) as caught:
        Paths.create(tmp_path / "file" / below)
    message = str(caught.value)
    assert message.startswith(f"cannot write to {tmp_path / 'file' / below}: ")
    assert message.endswith("; choose another place with --cache or PRAQTUNE_HOME")
    assert "\n" not in message


def test_a_directory_that_may_not_be_written_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only place is noticed before anything is computed for it."""
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    with pytest.raises(StorageError, match=r"cannot write to .*; choose another place with --cache or PRAQTUNE_HOME"):
        Paths.create(tmp_path)
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]
