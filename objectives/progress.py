"""How work that takes seconds says how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""`(phase, done, total)`; called often, so it must be cheap."""


def silent(phase: str, done: int, total: int) -> None:
    """Say nothing."""
