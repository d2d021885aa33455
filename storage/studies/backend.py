"""The door for whatever can store studies.

Responsible for what a storage must be able to do, and for what addresses and errors of all of them look like. May
assume that a URL was resolved.
"""

from contextlib import AbstractContextManager
from typing import Any, Protocol

from optuna.storages import BaseStorage

JOURNAL, IN_FILE = "journal:", "@"
REMEDY = "check --storage, that the server runs, and that you may write there"
ALLOWED = (
    "allowed: sqlite:///FILE, postgresql://..., mysql://..., journal:FILE, redis://..., or @FILE with one of them in it"
)


class Backend(Protocol):
    """A kind of storage."""

    def open(self, url: str) -> BaseStorage:
        """Open the storage, and create it where needed.

        Raises:
            AddressError: If the URL is none of this kind.
            StorageError: If it cannot be written.
        """

    def read(self, url: str) -> BaseStorage:
        """Open what exists for reading alone: nothing is changed or made, and no permission to write is needed.

        Raises:
            AddressError: If it holds no studies.
            StorageError: If it cannot be read.
        """

    def exists(self, url: str) -> bool:
        """Return whether there is something to open: whoever only reads makes no storage."""

    def lock(self, storage: BaseStorage, name: str) -> AbstractContextManager[Any]:
        """Return a lock that everyone who shares the storage shares, and that vanishes with its holder.

        Args:
            storage: As `open` opened it.
            name: 32 hexadecimal digits; other names do not wait.

        Raises:
            StorageError: On entering, if there are no locks; on leaving, if the lock was lost meanwhile.
        """

    def limits(self) -> list[str]:
        """Return what a person who chose this storage should know before a study begins."""

    def heal(self, url: str) -> int:
        """Cut off what a writer that died left half-written; returns the bytes that were cut."""

    def upgrade(self, url: str) -> str | None:
        """Bring tables to the installed Optuna's version; returns that version, or None where there are no tables."""
