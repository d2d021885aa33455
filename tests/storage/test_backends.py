"""The door for storages: one that only a test has."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import optuna
import pytest
from filelock import FileLock
from optuna.storages import BaseStorage, InMemoryStorage

from storage.errors import AddressError, StorageError
from storage.studies import opening
from storage.studies.exclusive import exclusive
from storage.studies.opening import BACKENDS, heal, limits, open_storage, upgrade


class InMemory:
    """Studies that end with the process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, url: str) -> BaseStorage:
        """Always empty."""
        return InMemoryStorage()

    def read(self, url: str) -> BaseStorage:
        """The same."""
        return self.open(url)

    def exists(self, url: str) -> bool:
        """Always."""
        return True

    def lock(self, storage: BaseStorage, name: str) -> AbstractContextManager[Any]:
        """A locked file."""
        return FileLock(self._folder / name)

    def limits(self) -> list[str]:
        """Of a process."""
        return ["gone when the process ends"]

    def heal(self, url: str) -> int:
        """Three bytes, for the test."""
        return 3

    def upgrade(self, url: str) -> None:
        """No tables."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Of the new kind."""
    monkeypatch.setattr(opening, "BACKENDS", {**BACKENDS, "memory": InMemory(tmp_path)})
    return "memory:here"


def test_another_backend_is_one_entry(url: str, tmp_path: Path) -> None:
    """It is opened, locked, healed and explained like the others."""
    storage = open_storage(url)
    with exclusive(storage, "s"):
        optuna.create_study(storage=storage, study_name="s")
        assert len(list(tmp_path.iterdir())) == 1
    assert [study.study_name for study in storage.get_all_studies()] == ["s"]
    assert (limits(url), heal(url)) == (["gone when the process ends"], 3)
    with pytest.raises(StorageError, match="has no tables to upgrade"):
        upgrade(url)


def test_a_storage_that_was_not_opened_here_has_no_lock() -> None:
    """Nobody knows who shares it."""
    with pytest.raises(StorageError, match="InMemoryStorage has no locks"):
        exclusive(InMemoryStorage(), "s")


@pytest.mark.parametrize("wrong", ["sqlite:study.db", "redis:here", "postgresql:here", "here"])
def test_addresses_that_are_none_are_refused(wrong: str) -> None:
    """With what is allowed."""
    with pytest.raises(AddressError, match="is no URL of a storage; allowed: sqlite"):
        open_storage(wrong)
