"""Stored scores, by what was measured.

Responsible for the one way in which whoever reads a study comes by values per sequence, and for what happens where they
are missing or damaged. A verdict needs every score, so `of` refuses; what is only estimated from several settings
is estimated from those that can be read, so `readable` leaves the others out and says so once. May assume that equal
keys mean equal measurements: a score is read from its file once. Damage is not remembered, because whoever measures
the setting again repairs the file.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from hpo.study.record import Measured
from objectives.results import load_result
from objectives.scoring import Score
from storage.errors import DamagedEntryError
from storage.results import ResultStore

M = TypeVar("M", bound=Measured)


def ignore(_: DamagedEntryError) -> None:
    """Say nothing of a score that is left out."""


class Scores:
    """The scores of one result store, each read at most once.

    Args:
        store: Where results are kept.
        left_out: Told once of each setting whose score cannot be read, by `readable`.
    """

    def __init__(self, store: ResultStore, left_out: Callable[[DamagedEntryError], None] = ignore) -> None:
        self.store = store
        self._left_out = left_out
        self._read: dict[str, Score] = {}
        self._told: set[str] = set()

    def of(self, measured: Measured) -> Score:
        """The score of what was measured.

        Raises:
            DamagedEntryError: If it is missing or damaged.
        """
        key = measured.result or ""
        if key not in self._read:
            score = load_result(self.store, key).score if key else None
            if score is None:
                raise DamagedEntryError(key, f"{measured.name} has no values per sequence")
            # Copied: what is read is a window on the file, and stays open as long as the tensors live.
            self._read[key] = score.mapped(lambda values: values.clone())
        return self._read[key]

    def readable(self, measured: Iterable[M]) -> list[tuple[M, Score]]:
        """Everything of `measured` whose score can be read, with it, in the given order."""
        scored = []
        for row in measured:
            try:
                scored.append((row, self.of(row)))
            except DamagedEntryError as damage:
                self._tell(row, damage)
        return scored

    def _tell(self, measured: Measured, damage: DamagedEntryError) -> None:
        key = measured.result or measured.name
        if key not in self._told:
            self._told.add(key)
            self._left_out(damage)
