"""MySQL and MariaDB as a storage, as Optuna offers them.

Responsible for their lock.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy
from optuna.storages import BaseStorage

from storage.errors import StorageError
from storage.studies.database import Database, engine_of

WAIT_SECONDS = 600


class Mysql(Database):
    """The backend for `mysql:` and `mariadb:`."""

    def limits(self) -> list[str]:
        """Warn that nothing here tests it."""
        return ["MySQL as a storage works as Optuna offers it and is not among this project's tests; prefer PostgreSQL"]

    @contextmanager
    def lock(self, storage: BaseStorage, name: str) -> Iterator[None]:
        """Hold a named lock that ends with its session."""
        with engine_of(storage).connect() as connection:
            answer = connection.execute(
                sqlalchemy.text("SELECT GET_LOCK(:name, :wait)"), {"name": name, "wait": WAIT_SECONDS}
            )
            if answer.scalar() != 1:
                raise StorageError(f"no lock of the database in {WAIT_SECONDS} s; look for workers that hang")
            try:
                yield
            finally:
                connection.execute(sqlalchemy.text("SELECT RELEASE_LOCK(:name)"), {"name": name})
