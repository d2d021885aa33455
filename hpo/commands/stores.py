"""Where a command reads and writes: the directory of cache and results, the storage of studies, one study in it.

Responsible for the way from the common flags to open storages. May assume the flags of `hpo.commands.flags`.
"""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

    from storage.paths import Paths


def paths_of(parsed: Namespace) -> "Paths":
    """The directories of cache and results.

    Raises:
        StorageError: If others may write there and nobody said that they may.
    """
    from storage.paths import Paths

    paths = Paths(Path(parsed.cache)) if parsed.cache else Paths.default()
    if not parsed.allow_shared_cache:
        paths.require_private()
    return paths


def storage_url(parsed: Namespace) -> str:
    """The address of the storage of studies."""
    from storage.studies.opening import chosen_url

    return chosen_url(parsed.storage, paths_of(parsed))


@contextmanager
def read_storage(parsed: Namespace) -> "Iterator[optuna.storages.BaseStorage]":
    """Open the storage that a command only reads, which changes nothing; its errors become ours."""
    from storage.studies.opening import open_to_read, storage_errors

    url = storage_url(parsed)
    with storage_errors(url):
        yield open_to_read(url)


@contextmanager
def opened_storage(parsed: Namespace) -> "Iterator[optuna.storages.BaseStorage]":
    """Open the storage that a command changes; where there is none, none is made, and its errors become ours."""
    from storage.studies.opening import open_existing, storage_errors

    url = storage_url(parsed)
    with storage_errors(url):
        yield open_existing(url)


@contextmanager
def made_storage(parsed: Namespace) -> "Iterator[optuna.storages.BaseStorage]":
    """Open the storage that a command writes to, and make it where needed; its errors become ours."""
    from storage.studies.opening import open_storage, storage_errors

    url = storage_url(parsed)
    with storage_errors(url):
        yield open_storage(url)


@contextmanager
def opened_study(parsed: Namespace) -> "Iterator[optuna.Study]":
    """Open the study that a command reads."""
    from hpo.study.finding import find_study

    with read_storage(parsed) as storage:
        yield find_study(storage, parsed.study)
