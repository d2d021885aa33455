"""One process at a time: a lock on a study that everyone shares who shares its storage.

Responsible for locks that vanish with their holder - a database session, an open file - so that nobody has to guess
whether an owner is dead. May assume that what is done under a lock takes seconds. A trial is no such thing: who works
on it says so by heartbeats.
"""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import sqlalchemy
from filelock import FileLock
from optuna.storages import BaseStorage, RDBStorage

from storage.errors import StorageError
from storage.studies.journal import Journal

# A session that neither works nor ends its transaction for so long is stopped by the server, and its lock with it:
# that of a process that was suspended, or of a machine that lost its power.
LONGEST_IDLE = "120s"
MYSQL_WAIT_SECONDS = 600


def exclusive(storage: BaseStorage, name: str) -> AbstractContextManager[object]:
    """A context manager that only one process at a time is inside of; others wait.

    Args:
        storage: As `open_storage` opened it.
        name: Of the lock; locks of other names do not wait for each other.

    Raises:
        StorageError: On entering, if the storage has no locks; on leaving, if the lock was lost meanwhile.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    if isinstance(storage, Journal):
        return storage.exclusive(digest)
    if isinstance(storage, RDBStorage):
        dialect = storage.engine.dialect.name
        if dialect == "sqlite":
            return FileLock(f"{storage.engine.url.database}.{digest}.lock")
        if dialect == "postgresql":
            return _postgresql(storage.engine, digest)
        if dialect in ("mysql", "mariadb"):
            return _mysql(storage.engine, digest)
    raise StorageError(f"{type(storage).__name__} has no locks; use sqlite:, postgresql:, mysql: or journal:")


@contextmanager
def _postgresql(engine: sqlalchemy.Engine, digest: str) -> Iterator[None]:
    """An advisory lock that ends with its transaction."""
    number = int.from_bytes(bytes.fromhex(digest)[:8], signed=True)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(f"SET LOCAL idle_in_transaction_session_timeout = '{LONGEST_IDLE}'"))
        connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})
        yield


@contextmanager
def _mysql(engine: sqlalchemy.Engine, digest: str) -> Iterator[None]:
    """A named lock that ends with its session."""
    with engine.connect() as connection:
        given = connection.execute(
            sqlalchemy.text("SELECT GET_LOCK(:name, :wait)"), {"name": digest, "wait": MYSQL_WAIT_SECONDS}
        )
        if given.scalar() != 1:
            raise StorageError(f"no lock of the database in {MYSQL_WAIT_SECONDS} s; look for workers that hang")
        try:
            yield
        finally:
            connection.execute(sqlalchemy.text("SELECT RELEASE_LOCK(:name)"), {"name": digest})
