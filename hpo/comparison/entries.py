"""What a comparison compares: rows that were measured on the same texts.

Responsible for what a row is and for which rows have equal bits. May assume that every score is of the texts' very
sequences, and finite.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hpo.study.record import Measured
from objectives.scoring import Score

Kind = Literal["full precision", "method", "trial", "model"]
BITS_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of a comparison, on all data sets.

    Attributes:
        kind: Where it comes from.
        measured: Its name, which no other row has, its setting, its bits and bytes.
        scores: On every data set, in their order.
        score_seconds: Spent on each of them, by the dense model.
        packed: Whether bits and bytes are those of packed codes; False where weights are counted as they are.
    """

    kind: Kind
    measured: Measured
    scores: tuple[Score, ...]
    score_seconds: tuple[float, ...]
    packed: bool

    @property
    def name(self) -> str:
        """Return the name that tables have."""
        return self.measured.name

    @property
    def is_quantized(self) -> bool:
        """Tell whether it takes part in ranks: everything but full precision does."""
        return self.kind != "full precision"

    def tokens_per_second(self, place: int) -> float:
        """Count scored tokens of a data set per second."""
        return float(self.scores[place].tokens.sum()) / self.score_seconds[place]


def equal_bits(entries: Sequence[Entry]) -> Mapping[float, list[Entry]]:
    """Group the packed rows by their bits per weight, the largest group first, fewer bits first among equals."""
    by_bits: dict[float, list[Entry]] = {}
    for entry in entries:
        if entry.packed and entry.measured.bits_per_weight is not None:
            by_bits.setdefault(round(entry.measured.bits_per_weight, BITS_DIGITS), []).append(entry)
    return dict(sorted(by_bits.items(), key=lambda group: (-len(group[1]), group[0])))
