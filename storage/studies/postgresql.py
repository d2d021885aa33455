"""PostgreSQL as a storage: many machines.

Responsible for its lock.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy
from optuna.storages import BaseStorage

from storage.studies.database import Database, engine_of

CONNECT_SECONDS = 10
# A session that neither works nor ends its transaction for so long is stopped by the server, and its lock with it:
# that of a process that was suspended, or of a machine that lost its power.
LONGEST_IDLE = "120s"


class Postgresql(Database):
    """The backend for `postgresql:`."""

    def arguments(self) -> dict[str, object]:
        """Return a short time limit for connecting, so that a server that is away is noticed soon."""
        return {"connect_args": {"connect_timeout": CONNECT_SECONDS}}

    @contextmanager
    def lock(self, storage: BaseStorage, name: str) -> Iterator[None]:
        """Hold an advisory lock that ends with its transaction."""
        number = int.from_bytes(bytes.fromhex(name)[:8], signed=True)
        with engine_of(storage).begin() as connection:
            connection.execute(sqlalchemy.text(f"SET LOCAL idle_in_transaction_session_timeout = '{LONGEST_IDLE}'"))
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})
            yield
