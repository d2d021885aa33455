"""A real PostgreSQL for tests, from a package that brings its own server."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import make_url
from sqlalchemy.pool import NullPool


@dataclass(frozen=True, kw_only=True)
class Database:
    """One server; every test gets a database of its own."""

    server: Any
    directory: Path

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """The URL of an empty database."""
        name = f"test_{secrets.token_hex(4)}"
        # Nothing is kept open: the server may be restarted in between.
        admin = sqlalchemy.create_engine(self.server.get_uri(), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with admin.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        try:
            yield make_url(self.server.get_uri()).set(database=name).render_as_string(hide_password=False)
        finally:
            with admin.connect() as connection:
                connection.execute(sqlalchemy.text(f"DROP DATABASE {name} WITH (FORCE)"))

    def restart(self) -> None:
        """As an administrator would: every connection is cut."""
        self.server.stop()
        self.server.start()
