"""SQLite as a storage: one file, many processes of one machine.

Responsible for transactions that wait for each other. May assume that the file lies on a local disk: its locks do not
work on network file systems.
"""

import os
import sqlite3
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.pool import NullPool

from storage.errors import AddressError, StorageError
from storage.paths import Paths
from storage.studies.backend import ALLOWED, REMEDY
from storage.studies.database import Database, engine_of, with_tables

WAIT_SECONDS = 60.0


class Sqlite(Database):
    """SQLite that takes its write lock when a transaction begins.

    By default it takes it at the first write, and two processes that have both read then fail instead of waiting: the
    same queued trial is run twice, or a database is called locked.
    """

    def open(self, url: str) -> RDBStorage:
        """Open one file, and make it where needed."""
        parsed, path = make_url(url), _file(url)
        Paths.create(path.parent)
        if path.exists() and not os.access(path, os.W_OK):
            raise StorageError(f"storage {parsed} cannot be used: {path} may not be written; {REMEDY}")
        storage = with_tables(str(parsed), {"creator": lambda: _connection(path)})
        event.listen(storage.engine, "begin", _begin_immediate)
        return storage

    def read(self, url: str) -> RDBStorage:
        """Open one file that exists, and leave it and its folder as they are."""
        path = _file(url)
        engine = {"creator": lambda: _reading_connection(path), "poolclass": NullPool}
        with closing(_reading_connection(path)) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'version_info'").fetchall():
                raise AddressError(f"storage {url} holds no studies; begin one with `optimize`, or check --storage")
        storage = RDBStorage(url, engine_kwargs=engine, skip_table_creation=True)
        event.listen(storage.engine, "begin", _begin)
        return storage

    def exists(self, url: str) -> bool:
        """Return whether there is a file; what is in it, opening tells."""
        database = make_url(url).database
        return database is None or database == ":memory:" or Path(database).exists()

    def lock(self, storage: BaseStorage, name: str) -> AbstractContextManager[Any]:
        """Lock a file beside the database."""
        return FileLock(f"{engine_of(storage).url.database}.{name}.lock")


def _file(url: str) -> Path:
    parsed = make_url(url)
    if parsed.database is None or parsed.database == ":memory:":
        raise AddressError(f"storage {parsed} lives in one process's memory; {ALLOWED}")
    return Path(parsed.database)


def _connection(path: Path) -> sqlite3.Connection:
    # Transactions begin where SQLAlchemy says, not where Python's driver guesses.
    connection = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _reading_connection(path: Path) -> sqlite3.Connection:
    """Connect without changing anything.

    Whoever reads a file with a write-ahead log makes one where there is none, and cannot remove it. Where there is none
    nobody is writing, so the file is read as it stands; every connection looks again.
    """
    mode = "immutable=1" if _has_log_mode(path) and not Path(f"{path}-wal").exists() else "mode=ro"
    address = f"file:{quote(str(path.absolute()))}?{mode}"
    return sqlite3.connect(address, uri=True, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)


def _has_log_mode(path: Path) -> bool:
    """Tell from the header whether a write-ahead log belongs to the file (https://sqlite.org/fileformat2.html)."""
    with path.open("rb") as file:
        return file.read(20)[18:] == b"\x02\x02"


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
