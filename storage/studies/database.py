"""Databases: what SQLite, PostgreSQL and MySQL have in common.

Responsible for tables. May assume that Optuna knows the database's dialect.
"""

import time
import weakref
from contextlib import AbstractContextManager
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from storage.errors import StorageError

OPEN_ATTEMPTS = 10
MADE_BY_ANOTHER = ("already exists", "UniqueViolation", "duplicate key", "UNIQUE constraint failed")


class Database:
    """A database that is known to Optuna alone: it can be opened and upgraded, but has no lock."""

    def open(self, url: str) -> BaseStorage:
        """Open it with few connections per worker, each tried first: a server allows about a hundred in all."""
        make_url(url)
        return with_tables(url, {"pool_size": 1, "max_overflow": 2, "pool_pre_ping": True, **self.arguments()})

    def read(self, url: str) -> BaseStorage:
        """Open it as writers do: tables that are there are not made."""
        return self.open(url)

    def exists(self, url: str) -> bool:
        """Return whether the database has Optuna's tables."""
        engine = sqlalchemy.create_engine(url)
        try:
            return sqlalchemy.inspect(engine).has_table("studies")
        finally:
            engine.dispose()

    def arguments(self) -> dict[str, object]:
        """Return what SQLAlchemy is told besides."""
        return {}

    def lock(self, storage: BaseStorage, name: str) -> AbstractContextManager[Any]:
        """Refuse: such a storage has no lock."""
        raise no_locks(storage)

    def limits(self) -> list[str]:
        """Return nothing: there is nothing to know."""
        return []

    def heal(self, url: str) -> int:
        """Do nothing: a database heals itself."""
        return 0

    def upgrade(self, url: str) -> str:
        """Upgrade the tables by Optuna's own migrations."""
        storage = RDBStorage(url, skip_compatibility_check=True)
        try:
            storage.upgrade()
            return str(storage.get_current_version())
        finally:
            storage.engine.dispose()


def no_locks(storage: BaseStorage) -> StorageError:
    """Return the error that a storage cannot be shared."""
    return StorageError(f"{type(storage).__name__} has no locks; use sqlite:, postgresql:, mysql: or journal:")


def engine_of(storage: BaseStorage) -> sqlalchemy.Engine:
    """Return the connections of a database."""
    if not isinstance(storage, RDBStorage):
        raise no_locks(storage)
    return storage.engine


def with_tables(url: str, engine_kwargs: dict[str, object]) -> RDBStorage:
    """Open a database; several processes that open an empty one at once may all set out to create its tables."""
    for attempt in range(OPEN_ATTEMPTS):
        try:
            storage = RDBStorage(url, engine_kwargs=engine_kwargs)
            break
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            if attempt == OPEN_ATTEMPTS - 1 or not any(sign in str(error) for sign in MADE_BY_ANOTHER):
                raise
            time.sleep(0.2)
    # Whoever lets go of a storage lets go of its connections.
    weakref.finalize(storage, storage.engine.dispose)
    return storage
