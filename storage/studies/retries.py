"""Storage that cannot be reached for a while is waited for.

Responsible for telling a lost connection from a mistake, and for trying again with growing pauses. May assume that
what is tried again may be done twice: every step of a worker reads first what is already there.
"""

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import sqlalchemy.exc
from optuna.exceptions import StorageInternalError

T = TypeVar("T")
RETRY_SECONDS = 600.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0


def with_retries(step: Callable[[], T], waiting: Callable[[str], None], check: Callable[[], None] = lambda: None) -> T:
    """Return the result of `step`, which is tried again as long as its storage cannot be reached.

    Args:
        step: Safe to do again from its beginning.
        waiting: Told once, with the reason.
        check: Called often while waiting; what it raises ends the wait.

    Raises:
        sqlalchemy.exc.OperationalError, optuna.exceptions.StorageInternalError: After `RETRY_SECONDS`; and at once
            whatever is no lost connection.
    """
    started, pause = time.monotonic(), FIRST_PAUSE
    while True:
        try:
            return step()
        except Exception as error:
            reason = _lost(error)
            if reason is None or time.monotonic() - started > RETRY_SECONDS:
                raise
            if pause == FIRST_PAUSE:
                waiting(f"the storage cannot be reached ({reason}); trying again for {RETRY_SECONDS / 60:.0f} min")
        until = time.monotonic() + pause
        while time.monotonic() < until:
            check()
            time.sleep(min(0.2, pause))
        pause = min(2 * pause, LONGEST_PAUSE)


def _lost(error: Exception) -> str | None:
    """Why a connection was lost; None where the error is another one."""
    for cause in _causes(error):
        if isinstance(cause, sqlalchemy.exc.DBAPIError):
            of_connection = isinstance(cause, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError)
            if cause.connection_invalidated or of_connection:
                return " ".join(str(cause.orig).split())[:200]
        if isinstance(cause, ConnectionError | TimeoutError):
            return " ".join(str(cause).split())[:200] or type(cause).__name__
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (error.__context__ if isinstance(error, StorageInternalError) else None)
