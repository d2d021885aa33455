"""Study storage: from a URL to an Optuna storage that several processes can use safely.

Responsible for how a database is opened and for turning its refusals into one line without passwords. May assume that
an SQLite file lies on a local disk: its locks do not work on network file systems. Ownership of trials is the
business of whoever works on them.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from storage.errors import AddressError, StorageError
from storage.paths import Paths

JOURNAL = "journal:"
SQLITE_WAIT_SECONDS = 60.0
REMEDY = "check --storage, that the server runs, and that you may write there"
ALLOWED = "allowed: sqlite:///FILE, postgresql://..., mysql://..., journal:FILE"


def default_url(paths: Paths) -> str:
    """One SQLite file beside the results."""
    return f"sqlite:///{paths.studies}"


def shown(url: str) -> str:
    """The URL as it may be printed: without a password."""
    if url.startswith(JOURNAL):
        return url
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url.rpartition("@")[2]


def open_storage(url: str) -> BaseStorage:
    """Open, and create where needed, the storage behind a URL.

    Raises:
        AddressError: If the URL is none of a storage.
        StorageError: If the storage cannot be reached or written.
    """
    with storage_errors(url):
        if url.startswith(JOURNAL):
            path = Path(url.removeprefix(JOURNAL).removeprefix("//"))
            Paths.create(path.parent)
            return JournalStorage(JournalFileBackend(str(path)))
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _open_sqlite(parsed)
        return RDBStorage(url, engine_kwargs={"pool_size": 1, "max_overflow": 2, "pool_pre_ping": True})


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what a database refuses inside the block into a `StorageError`."""
    try:
        yield
    except ArgumentError as error:
        raise AddressError(f"storage {shown(url)!r} is no URL of a storage; {ALLOWED}") from error
    except (OperationalError, sqlite3.OperationalError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise StorageError(f"storage {shown(url)} cannot be used: {reason}; {REMEDY}") from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, OSError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise StorageError(f"storage {shown(url)} cannot be used: {reason}; {REMEDY}") from error


def _open_sqlite(url: URL) -> RDBStorage:
    """SQLite that takes its write lock when a transaction begins.

    By default it takes it at the first write, and two processes that have both read then fail instead of waiting: the
    same queued trial is run twice, or a database is called locked.
    """
    if url.database is None or url.database == ":memory:":
        raise AddressError(f"storage {url} lives in one process's memory; {ALLOWED}")
    path = Path(url.database)
    Paths.create(path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise StorageError(f"storage {url} cannot be used: {path} may not be written; {REMEDY}")

    def connect() -> sqlite3.Connection:
        # Transactions begin where SQLAlchemy says, not where Python's driver guesses.
        connection = sqlite3.connect(path, timeout=SQLITE_WAIT_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    storage = _with_tables(str(url), connect)
    event.listen(storage.engine, "begin", _begin_immediate)
    return storage


def _with_tables(url: str, connect: object) -> RDBStorage:
    try:
        return RDBStorage(url, engine_kwargs={"creator": connect})
    except OperationalError as error:
        # Several processes that open an empty file at once may all set out to create its tables.
        if "already exists" not in str(error):
            raise
        return RDBStorage(url, engine_kwargs={"creator": connect})


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
