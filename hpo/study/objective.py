"""What a study minimises: perplexity, or divergence from full precision. One value that everyone is handed.

Responsible for what the value of a score is, for differences of values and how they are written, and for how small a
difference may be and still count. May assume that perplexity is `exp` of the mean NLL, and that both measures are nats
per token. Light to import: whoever asks where a study stands reads it.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hpo.study.confirmation import ConfirmedScore, Interval

if TYPE_CHECKING:
    from hpo.study.record import Measured
    from objectives.paired import Difference
    from objectives.scoring import Measure, Score

Name = Literal["perplexity", "kl"]
# The mean NLL above which a perplexity is not a number.
MOST_NATS = 700.0


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised, and its words.

    Attributes:
        name: As `--objective` and contracts have it, and the field of what was measured that holds the value.
        measure: Whose mean over the tokens decides, in nats per token.
        label: What the value is called in a sentence.
        meaning: What it is, for those who ask.
        short: What it is called where there is little room.
        column: The same over a column of numbers, and along an axis.
        digits: After the point of a value.
        unit: Of a change.
        change_column: What a column of changes is called, and an axis.
        change_digits: After the point of a change.
        indifferent: In the unit of a change: what two settings may differ by and be as good as each other.
        meaningful: In the unit of a change: what a win has to be above.
    """

    name: Name
    measure: "Measure"
    label: str
    meaning: str
    short: str
    column: str
    digits: int
    unit: str
    change_column: str
    change_digits: int
    indifferent: float
    meaningful: float

    @property
    def title(self) -> str:
        """Return the label as a sentence begins."""
        return self.label[0].upper() + self.label[1:]

    def from_nats(self, nats: float) -> float:
        """Convert a mean of the measure, in nats per token, to a value."""
        return nats

    def to_nats(self, value: float) -> float:
        """Convert a value to nats per token, in which differences do not grow with the value."""
        return value

    def value(self, score: "Score") -> float:
        """Return the value of a score.

        Raises:
            ValueError: If the measure was not measured.
        """
        return self.from_nats(score.mean(self.measure))

    def of(self, measured: "Measured | ConfirmedScore") -> float | None:
        """Return the value of what was measured; None where it was not measured to the end."""
        value: float | None = getattr(measured, self.name)
        return value

    def difference(self, first: "Score", second: "Score") -> "Difference":
        """Compare two scores of the same sequences, in nats per token."""
        # Imported here: it takes torch, which `status` does not need.
        from objectives.paired import paired_difference

        return paired_difference(first, second, measure=self.measure)

    def change(self, difference: "Difference") -> Interval:
        """Convert a difference to the unit in which changes are spoken of."""
        return Interval(value=difference.value, low=difference.low, high=difference.high)

    def of_full(self, full: "Measured | ConfirmedScore | None") -> float | None:
        """Return the value of full precision; None where it is not measured."""
        return None if full is None else self.of(full)

    def lost(self, score: "Score", full: float) -> float:
        """Return how far a score is above a value of full precision's, in nats per token."""
        return score.mean(self.measure) - self.to_nats(full)

    def above(self, value: float, full: float) -> float:
        """Return how far a value is above another one, in the unit of a change."""
        return value - full

    def number(self, value: float) -> str:
        """Write a value: `28.123`, or `0.1056`."""
        return f"{value:.{self.digits}f}"

    def text(self, value: float) -> str:
        """Write a value with its name: `perplexity 28.123`, or `KL 0.1056`."""
        return f"{self.short} {self.number(value)}"

    def interval_text(self, change: Interval) -> str:
        """Write a change with its interval: `-0.42 % [-0.61, -0.23]`, or `-0.0123 nats [-0.0150, -0.0096]`."""
        value, low, high = (self._signed(end) for end in (change.value, change.low, change.high))
        return f"{value} {self.unit} [{low}, {high}]"

    def change_text(self, difference: "Difference") -> str:
        """Write a difference likewise."""
        return self.interval_text(self.change(difference))

    def numbers_text(self, change: Interval) -> str:
        """Write a change without its unit: `-0.42 [-0.61, -0.23]`."""
        return self.interval_text(change).replace(f" {self.unit} ", " ")

    def short_change(self, change: float) -> str:
        """Write a change where there is little room: `+6.6 %`, or `+0.106 nats`."""
        return f"{change:+.{self.change_digits - 1}f} {self.unit}"

    def above_text(self, value: float, full: float) -> str:
        """Write how far a value is above full precision's: `+6.58 %`, or `+0.1056 nats`."""
        return f"{self._signed(self.above(value, full))} {self.unit}"

    def against_text(self, difference: "Difference", baseline: "Score") -> str:
        """Write a difference to a baseline as sentences have it, with what it is a difference of."""
        return f"{self.change_text(difference)} {self.label}"

    def _signed(self, value: float) -> str:
        return f"{value:+.{self.change_digits}f}" if math.isfinite(value) else "–"


class _Perplexity(Objective):
    def from_nats(self, nats: float) -> float:
        return math.exp(nats) if nats <= MOST_NATS else math.inf

    def to_nats(self, value: float) -> float:
        return math.log(value)

    def above(self, value: float, full: float) -> float:
        return 100 * (value / full - 1) if full > 0 else math.nan

    def change(self, difference: "Difference") -> Interval:
        value, low, high = difference.percent()
        return Interval(value=value, low=low, high=high)


class _Divergence(Objective):
    def of_full(self, full: "Measured | ConfirmedScore | None") -> float | None:
        # By definition; what is stored of it is rounding.
        return 0.0

    def against_text(self, difference: "Difference", baseline: "Score") -> str:
        mean = baseline.mean(self.measure)
        relative = f", {100 * difference.value / mean:+.1f} % of its" if mean > 0 else ","
        return f"{self.change_text(difference)} per token{relative} {self.label}"


PERPLEXITY = _Perplexity(
    name="perplexity",
    measure="nll",
    label="perplexity",
    meaning="perplexity",
    short="perplexity",
    column="perplexity",
    digits=3,
    unit="%",
    change_column="percent of perplexity",
    change_digits=2,
    indifferent=0.05,
    meaningful=0.1,
)
# The nats of the same thresholds: 0.1 % of perplexity are 0.001 nats per token of NLL.
KL = _Divergence(
    name="kl",
    measure="kl",
    label="KL divergence",
    meaning="mean KL divergence from full precision in nats per token",
    short="KL",
    column="KL, nats per token",
    digits=4,
    unit="nats",
    change_column="KL, nats per token",
    change_digits=4,
    indifferent=0.0005,
    meaningful=0.001,
)
OBJECTIVES: dict[str, Objective] = {objective.name: objective for objective in (PERPLEXITY, KL)}
"""The objectives by name."""
