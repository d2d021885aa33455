"""Signals: raised at once, deferred where a trial changes hands, and never lost."""

import os
import signal
from collections.abc import Iterator

import pytest

from hpo.workers.interrupts import Interrupts, Terminated
from objectives.progress import silent


@pytest.fixture(autouse=True)
def watched_by_default() -> Iterator[None]:
    """Whoever runs the tests in the background may have them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated), (signal.SIGHUP, Terminated)],
)
def test_a_signal_interrupts_at_once(number: signal.Signals, kind: type[KeyboardInterrupt]) -> None:
    """All do what Ctrl-C does, but say who ended it, and the handlers of before are back afterwards."""
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as caught, Interrupts().watched():
        send(number)
    assert caught.type is kind
    assert signal.getsignal(number) == before


def test_a_signal_waits_until_a_deferred_block_has_ended() -> None:
    """What the block was to find is there when the interrupt is raised."""
    interrupts, found = Interrupts(), []

    def claim() -> None:
        with interrupts.deferred():
            send(signal.SIGTERM)
            found.append("claimed")

    with pytest.raises(KeyboardInterrupt), interrupts.watched():
        claim()
    assert found == ["claimed"]


def test_a_step_inside_a_deferred_block_does_not_end_it() -> None:
    """Only the outermost block raises, and whoever called a step has its result until then."""
    interrupts = Interrupts()
    found: list[str] = []

    def step() -> str:
        send(signal.SIGINT)
        return "stored"

    def claim() -> None:
        with interrupts.deferred():
            found.append(interrupts.shielded(step)())
            found.append("claimed")

    with pytest.raises(KeyboardInterrupt), interrupts.watched():
        claim()
    assert found == ["stored", "claimed"]


def test_an_interrupt_that_was_lost_is_raised_at_the_next_safe_point() -> None:
    """Somebody swallowed the exception: the next call of the progress function raises it again."""
    interrupts = Interrupts()
    progress = interrupts.checked(silent)
    progress("phase", 0, 1)
    with interrupts.watched(), pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        progress("phase", 1, 1)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """A shell that runs a job in the background has it ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts().watched():
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
