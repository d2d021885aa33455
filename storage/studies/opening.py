"""Study storage: from a URL to an Optuna storage that several processes can use safely.

Responsible for how a database is opened and for turning its refusals into one line without passwords. May assume that
an SQLite file lies on a local disk: its locks do not work on network file systems. Ownership of trials is the
business of whoever works on them.
"""

import os
import sqlite3
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from storage.errors import AddressError, StorageError
from storage.files import disk_errors
from storage.paths import Paths
from storage.studies.journal import FileJournal, Journal, Redis

JOURNAL, REDIS, IN_FILE = "journal:", ("redis://", "rediss://"), "@"
STORAGE_VARIABLE = "PRAQTUNE_STORAGE"
SQLITE_WAIT_SECONDS = 60.0
CONNECT_SECONDS = 10
OPEN_ATTEMPTS = 10
MADE_BY_ANOTHER = ("already exists", "UniqueViolation", "duplicate key", "UNIQUE constraint failed")
REMEDY = "check --storage, that the server runs, and that you may write there"
ALLOWED = (
    "allowed: sqlite:///FILE, postgresql://..., mysql://..., journal:FILE, redis://..., or @FILE with one of them in it"
)


def default_url(paths: Paths) -> str:
    """One SQLite file beside the results."""
    return f"sqlite:///{paths.studies}"


def chosen_url(given: str | None, paths: Paths) -> str:
    """What was given, else `$PRAQTUNE_STORAGE`, else the default file."""
    return given or os.environ.get(STORAGE_VARIABLE) or default_url(paths)


def shown(url: str) -> str:
    """The URL as it may be printed: without a password."""
    if url.startswith((JOURNAL, IN_FILE)):
        return url
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url.rpartition("@")[2]


def resolved(url: str) -> str:
    """The URL that `@FILE` stands for; any other is itself.

    Raises:
        AddressError: If the file cannot be read or is empty.
    """
    if not url.startswith(IN_FILE):
        return url
    try:
        text = Path(url.removeprefix(IN_FILE)).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AddressError(f"storage {url!r}: the file cannot be read; {ALLOWED}") from error
    if not text or "\n" in text:
        raise AddressError(f"storage {url!r}: the file does not hold one line with a URL; {ALLOWED}")
    return text


def limits(url: str) -> list[str]:
    """What a person who chose this storage should know before a study begins."""
    url = resolved(url)
    if url.startswith(REDIS):
        return ["Redis as a storage: use a server that nobody else reaches; its log is replayed whole by every worker"]
    if url.startswith(JOURNAL):
        return ["a journal file as a storage is read by every worker as a whole: good for some hundred trials"]
    backend = make_url(url).get_backend_name()
    if backend in ("mysql", "mariadb"):
        return ["MySQL as a storage works as Optuna offers it and is not among this project's tests; prefer PostgreSQL"]
    return []


def open_storage(url: str) -> BaseStorage:
    """Open, and create where needed, the storage behind a URL, or behind `@FILE`.

    Raises:
        AddressError: If the URL is none of a storage.
        StorageError: If the storage cannot be reached or written.
    """
    url = resolved(url)
    with storage_errors(url):
        if url.startswith(JOURNAL):
            return Journal(FileJournal(_journal_file(url)))
        if url.startswith(REDIS):
            with warnings.catch_warnings():
                # It was asked for by name: that Optuna may still change it is no news.
                warnings.simplefilter("ignore", ExperimentalWarning)
                return Journal(Redis(url))
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _open_sqlite(parsed)
        return _with_tables(url, _engine_arguments(parsed))


def heal(url: str) -> int:
    """Cut a journal's last line off where its writer died in the middle of it; returns the bytes that were cut.

    Raises:
        StorageError: If the file cannot be written.
    """
    url = resolved(url)
    if not url.startswith(JOURNAL):
        return 0
    path = _journal_file(url)
    with disk_errors(path):
        return FileJournal(path).heal()


def upgrade(url: str) -> str:
    """Bring a database's tables to the installed Optuna's version; returns that version.

    Raises:
        StorageError: If the storage cannot be reached, or has no tables.
    """
    url = resolved(url)
    with storage_errors(url):
        if url.startswith((JOURNAL, *REDIS)):
            raise StorageError(f"storage {shown(url)} has no tables to upgrade")
        storage = RDBStorage(url, skip_compatibility_check=True)
        try:
            storage.upgrade()
            return str(storage.get_current_version())
        finally:
            storage.engine.dispose()


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

    storage = _with_tables(str(url), {"creator": connect})
    event.listen(storage.engine, "begin", _begin_immediate)
    return storage


def _journal_file(url: str) -> Path:
    path = Path(url.removeprefix(JOURNAL).removeprefix("//"))
    Paths.create(path.parent)
    return path


def _engine_arguments(url: URL) -> dict[str, object]:
    """Few connections per worker, each tried before it is used: a server allows about a hundred in all."""
    arguments: dict[str, object] = {"pool_size": 1, "max_overflow": 2, "pool_pre_ping": True}
    if url.get_backend_name() == "postgresql":
        arguments["connect_args"] = {"connect_timeout": CONNECT_SECONDS}
    return arguments


def _with_tables(url: str, engine_kwargs: dict[str, object]) -> RDBStorage:
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


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
