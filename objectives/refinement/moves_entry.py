"""What is kept of codes that move: which have moved of each Linear, and in the end what that gained.

Responsible for moves being read only by a refinement of the same codes. May assume a store of results.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from objectives.refinement_record import CodeMoves
from storage.errors import DamagedEntryError, StoredValueError
from storage.results import ResultStore
from storage.typed_json import decode, encode

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class KeptMoves:
    """What an entry holds.

    Attributes:
        moves: Which codes moved, as `moves_between` says, by name of the Linear, of the blocks that were gone through.
        outcome: What all of them together gained; None before all blocks were gone through.
    """

    moves: Mapping[str, Tensor] = field(default_factory=dict)
    outcome: CodeMoves | None = None


@dataclass(frozen=True, kw_only=True)
class _Record:
    codes: str
    outcome: CodeMoves | None


@dataclass(frozen=True, kw_only=True)
class MovesEntry:
    """Where moves are kept.

    Attributes:
        store: Of results.
        key: There.
        codes: Hash of the codes that move.
    """

    store: ResultStore
    key: str
    codes: str

    def read(self) -> KeptMoves:
        """Return what was kept for these codes; nothing, and a warning, where it is damaged or of other codes."""
        if self.key not in self.store:
            return KeptMoves()
        try:
            stored, moves = self.store.load(self.key)
            record = decode(_Record, stored, f"the moves {self.key}")
        except (DamagedEntryError, StoredValueError) as damage:
            log.warning("%s; codes are moved anew", damage)
            return KeptMoves()
        if record.codes != self.codes:
            log.warning("quantizing gave other codes than before; codes are moved anew")
            return KeptMoves()
        return KeptMoves(moves=dict(moves), outcome=record.outcome)

    def save(self, moves: Mapping[str, Tensor], outcome: CodeMoves | None = None) -> None:
        """Keep them in place of what was kept before.

        Raises:
            StorageError: If the store cannot be written.
        """
        self.store.save(self.key, encode(_Record(codes=self.codes, outcome=outcome)), dict(moves))
