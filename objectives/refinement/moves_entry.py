"""What is kept of codes that move: which have moved of each Linear, and in the end what that gained.

Responsible for the form in which that is stored. May assume a store of results.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from objectives.refinement.kept import read_kept
from objectives.refinement_record import CodeMoves
from storage.results import ResultStore
from storage.typed_json import encode


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
        kept = read_kept(self.store, self.key, _Record, self.codes, "codes are moved anew")
        if kept is None:
            return KeptMoves()
        record, moves = kept
        return KeptMoves(moves=dict(moves), outcome=record.outcome)

    def save(self, moves: Mapping[str, Tensor], outcome: CodeMoves | None = None) -> None:
        """Keep them in place of what was kept before.

        Raises:
            StorageError: If the store cannot be written.
        """
        self.store.save(self.key, encode(_Record(codes=self.codes, outcome=outcome)), dict(moves))
