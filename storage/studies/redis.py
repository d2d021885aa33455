"""Optuna's journal in Redis as a storage.

Responsible for never unpickling anything that comes from the server.
"""

import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalRedisBackend
from sqlalchemy.engine import make_url

from storage.errors import StorageError

LOCK_SECONDS = 120.0


class RedisJournal(BaseJournalBackend):
    """Optuna's journal in Redis without its snapshots.

    Optuna pickles a snapshot of the study into Redis now and then, and unpickles what it finds there: whoever may
    write to the server could run code in every worker. A backend without snapshots replays the whole log instead.
    """

    def __init__(self, url: str) -> None:
        self._journal = JournalRedisBackend(url)

    def read_logs(self, log_number_from: int) -> Iterable[Mapping[str, Any]]:  # type: ignore[override]
        """Read the entries from a number on."""
        return self._journal.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add entries."""
        self._journal.append_logs(logs)

    def lock(self, name: str) -> AbstractContextManager[Any]:
        """A lock that everyone on this server shares; it ends by itself when its holder died."""
        lock: AbstractContextManager[Any] = self._journal._redis.lock(name, timeout=LOCK_SECONDS)
        return lock


class Redis:
    """The backend for `redis:` and `rediss:`."""

    def open(self, url: str) -> JournalStorage:
        """Open a journal on a server that runs."""
        make_url(url)
        with warnings.catch_warnings():
            # It was asked for by name: that Optuna may still change it is no news.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return JournalStorage(RedisJournal(url))

    def read(self, url: str) -> JournalStorage:
        """Open it as writers do: reading appends nothing."""
        return self.open(url)

    def exists(self, url: str) -> bool:
        """Return that there is one: a server needs nothing to be made."""
        return True

    def lock(self, storage: BaseStorage, name: str) -> AbstractContextManager[Any]:
        """A lock of the server."""
        if not (isinstance(storage, JournalStorage) and isinstance(storage._backend, RedisJournal)):
            raise StorageError(f"{type(storage).__name__} is no journal in Redis")
        return storage._backend.lock(f"praqtune-{name}")

    def limits(self) -> list[str]:
        """Warn of its log's growth, and of who may write there."""
        return ["Redis as a storage: use a server that nobody else reaches; its log is replayed whole by every worker"]

    def heal(self, url: str) -> int:
        """Do nothing: a server writes whole entries."""
        return 0

    def upgrade(self, url: str) -> None:
        """Return None: there are no tables."""
