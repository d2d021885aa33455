"""Study storage: from a URL to an Optuna storage that several processes can use safely.

Responsible for which backend a URL names, and for turning what storages refuse into one line without passwords.
Ownership of trials is the business of whoever works on them.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

import optuna
from optuna.storages import BaseStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from storage.errors import AddressError, StorageError
from storage.paths import Paths
from storage.studies.backend import ALLOWED, IN_FILE, JOURNAL, REMEDY, Backend
from storage.studies.database import Database
from storage.studies.journal import JournalFile
from storage.studies.mysql import Mysql
from storage.studies.postgresql import Postgresql
from storage.studies.redis import Redis
from storage.studies.sqlite import Sqlite

STORAGE_VARIABLE = "PRAQTUNE_STORAGE"
# By the scheme of a URL; any other is a database that Optuna may know.
BACKENDS: Mapping[str, Backend] = {
    "sqlite": Sqlite(),
    "postgresql": Postgresql(),
    "mysql": Mysql(),
    "mariadb": Mysql(),
    "journal": JournalFile(),
    "redis": Redis(),
    "rediss": Redis(),
}
_OPENED: WeakKeyDictionary[BaseStorage, Backend] = WeakKeyDictionary()


def default_url(paths: Paths) -> str:
    """Return the URL of one SQLite file beside the results."""
    return f"sqlite:///{paths.studies}"


def chosen_url(url: str | None, paths: Paths) -> str:
    """Return the URL that was given, else `$PRAQTUNE_STORAGE`, else the default file."""
    return url or os.environ.get(STORAGE_VARIABLE) or default_url(paths)


def shown(url: str) -> str:
    """Return the URL as it may be printed: without a password."""
    if url.startswith((JOURNAL, IN_FILE)):
        return url
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url.rpartition("@")[2]


def resolved(url: str) -> str:
    """Return the URL that `@FILE` stands for; any other is itself.

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
    """Return what a person who chose this storage should know before a study begins."""
    return _backend(resolved(url)).limits()


def open_storage(url: str) -> BaseStorage:
    """Open, and create where needed, the storage behind a URL, or behind `@FILE`.

    Raises:
        AddressError: If the URL is none of a storage.
        StorageError: If the storage cannot be reached or written.
    """
    url = resolved(url)
    backend = _backend(url)
    with storage_errors(url):
        storage = backend.open(url)
    _OPENED[storage] = backend
    return storage


def exists(url: str) -> bool:
    """Return whether there is a storage behind a URL, or behind `@FILE`; nothing is made.

    Raises:
        AddressError: If the URL is none of a storage.
        StorageError: If the storage cannot be reached.
    """
    url = resolved(url)
    with storage_errors(url):
        return _backend(url).exists(url)


def require_existing(url: str) -> None:
    """Refuse a URL, or `@FILE`, with nothing behind it.

    Raises:
        AddressError: If the URL is none of a storage, or there is nothing behind it.
        StorageError: If the storage cannot be reached.
    """
    if not exists(url):
        raise AddressError(f"storage {shown(url)} does not exist; begin a study with `optimize`, or check --storage")


def open_existing(url: str) -> BaseStorage:
    """Open the storage behind a URL, or behind `@FILE`; where there is none, none is made.

    Raises:
        AddressError: If the URL is none of a storage, or there is nothing behind it.
        StorageError: If the storage cannot be reached or written.
    """
    require_existing(url)
    return open_storage(url)


def open_to_read(url: str) -> BaseStorage:
    """Open the storage behind a URL, or behind `@FILE`, for whoever writes nothing; it is left as it is.

    Raises:
        AddressError: If the URL is none of a storage, or there is nothing behind it.
        StorageError: If the storage cannot be reached or read.
    """
    require_existing(url)
    url = resolved(url)
    with storage_errors(url):
        return _backend(url).read(url)


def backend_that_opened(storage: BaseStorage) -> Backend | None:
    """Return the backend whose storage it is; None if it was not opened here."""
    return _OPENED.get(storage)


def heal(url: str) -> int:
    """Cut off what a writer that died left half-written; returns the bytes that were cut.

    Raises:
        StorageError: If the storage cannot be written.
    """
    url = resolved(url)
    return _backend(url).heal(url)


def upgrade(url: str) -> str:
    """Bring a database's tables to the installed Optuna's version; returns that version.

    Raises:
        StorageError: If the storage cannot be reached, or has no tables.
    """
    require_existing(url)
    url = resolved(url)
    with storage_errors(url):
        version = _backend(url).upgrade(url)
    if version is None:
        raise StorageError(f"storage {shown(url)} has no tables to upgrade")
    return version


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what a database refuses inside the block into a `StorageError`."""
    try:
        yield
    except ArgumentError as error:
        raise AddressError(f"storage {shown(url)!r} is no URL of a storage; {ALLOWED}") from error
    except (OperationalError, sqlite3.Error) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise StorageError(f"storage {shown(url)} cannot be used: {reason}; {REMEDY}") from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, OSError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise StorageError(f"storage {shown(url)} cannot be used: {reason}; {REMEDY}") from error


def _backend(url: str) -> Backend:
    dialect = url.partition(":")[0].partition("+")[0]
    return BACKENDS.get(dialect) or Database()
