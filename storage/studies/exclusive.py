"""One process at a time: a lock on a study that everyone shares who shares its storage.

Responsible for locks that vanish with their holder - a database session, an open file - so that nobody has to guess
whether an owner is dead. May assume that what is done under a lock takes seconds. A trial is no such thing: who works
on it says so by heartbeats.
"""

import hashlib
from contextlib import AbstractContextManager

from optuna.storages import BaseStorage

from storage.studies.database import no_locks
from storage.studies.opening import backend_that_opened


def exclusive(storage: BaseStorage, name: str) -> AbstractContextManager[object]:
    """Return a context manager that only one process at a time is inside of; others wait.

    Args:
        storage: As `open_storage` opened it.
        name: Of the lock; locks of other names do not wait for each other.

    Raises:
        StorageError: On entering, if the storage has no locks; on leaving, if the lock was lost meanwhile.
    """
    backend = backend_that_opened(storage)
    if backend is None:
        raise no_locks(storage)
    return backend.lock(storage, hashlib.sha256(name.encode()).hexdigest()[:32])
