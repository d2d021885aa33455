"""SIGTERM and SIGHUP end a command as Ctrl-C does: what it was writing is cleaned up.

Responsible for the handlers of a command; whoever works on a study has others while it does (`hpo.workers.interrupts`).
May assume one command at a time in a process.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

from hpo.workers.interrupts import Terminated

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def terminable() -> Iterator[None]:
    """Let both signals raise `Terminated` inside the block; one that the process ignores (`nohup`) stays ignored."""
    if current_thread() is not main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, handler in before.items() if handler == signal.SIG_DFL]
    for number in handled:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])


def _raise(number: int, frame: FrameType | None) -> None:
    # Once is enough: what cleans up is not to be interrupted by whoever is impatient.
    signal.signal(number, signal.SIG_IGN)
    raise Terminated
