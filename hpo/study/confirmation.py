"""What other text said of a study's winner, as it is stored.

Responsible for its fields; `hpo.verdict.confirmation` makes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hpo.space.size_class import SizeClass
from objectives.refinement_record import HeldBack


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A difference, in percent of perplexity unless nats per token are said, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ConfirmedScore:
    """One setting on one text.

    Attributes:
        dataset: The text's source.
        name: Of the trial or the reference.
        perplexity: There.
        mean_nll: Nats per token.
        tokens: How many were scored.
        kl: Divergence from full precision there, nats per token; None where it was not measured.
        flips: Percent of targets before which full precision holds another token most likely; None where `kl` is.
    """

    dataset: str
    name: str
    perplexity: float
    mean_nll: float
    tokens: int
    kl: float | None = None
    flips: float | None = None


@dataclass(frozen=True, kw_only=True)
class ConfirmedComparison:
    """The winner against one other setting on one text.

    Attributes:
        dataset: The text's source.
        name: Of the winner, or of a member of the front with its bits.
        against: Of the other one.
        percent: Difference of perplexity; negative is in the winner's favour.
        p_value: Two-sided, of no difference in what the study minimises.
        holm: The same, corrected for all comparisons together.
        kl: Difference of divergence, nats per token; None where the study minimises perplexity.
    """

    dataset: str
    name: str
    against: str
    percent: Interval
    p_value: float
    holm: float
    kl: Interval | None = None

    @property
    def change(self) -> Interval:
        """Return the difference that decides, in the unit of the study's objective."""
        return self.percent if self.kl is None else self.kl


@dataclass(frozen=True, kw_only=True)
class ConfirmedMember:
    """A member of a front on text that had no part in choosing it.

    Attributes:
        name: Of the trial.
        bit_budget: Of the size class it won.
        against: The best reference of no more bits, by the tuning text.
        rows: What was measured of both.
        comparisons: With that reference, text by text.
    """

    name: str
    bit_budget: float
    against: str
    rows: tuple[ConfirmedScore, ...]
    comparisons: tuple[ConfirmedComparison, ...]

    @property
    def size_class(self) -> SizeClass:
        """Return the size class that it won."""
        return SizeClass(group_size=None, bit_budget=self.bit_budget)


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """The winner on text that had no part in choosing it.

    Attributes:
        group_size: Of the size class it won; None for one scale per row.
        keep_ratio: Of the size class it won; None where no rows are kept.
        symmetric: Of the size class it won.
        bit_budget: Of the size class it won; 0 where all Linears are stored alike.
        winner: The trial's name.
        recommended: What was recommended before.
        sentence: The verdict.
        rows: What was measured.
        comparisons: The winner against everything else, text by text.
        front: The other members of a front; p-values are corrected for all comparisons of the confirmation together.
    """

    group_size: int | None
    keep_ratio: float | None
    winner: str
    recommended: str
    sentence: str
    rows: tuple[ConfirmedScore, ...]
    comparisons: tuple[ConfirmedComparison, ...]
    symmetric: bool = True
    bit_budget: float = 0.0
    front: tuple[ConfirmedMember, ...] = ()

    @property
    def size_class(self) -> SizeClass:
        """Return the size class that was won."""
        return SizeClass(
            group_size=self.group_size,
            keep_ratio=self.keep_ratio or 0.0,
            symmetric=self.symmetric,
            bit_budget=self.bit_budget,
        )

    def of(self, name: str, size_class: SizeClass) -> Sequence[ConfirmedComparison]:
        """Return what the best trial of a size class was compared with; nothing where another one was confirmed."""
        if (name, size_class) == (self.winner, self.size_class):
            return self.comparisons
        members = (member for member in self.front if (name, size_class) == (member.name, member.size_class))
        return next((member.comparisons for member in members), ())

    @property
    def datasets(self) -> list[str]:
        """List the texts' sources, the tuning text's own kind first."""
        return list(dict.fromkeys(row.dataset for row in self.rows))


@dataclass(frozen=True, kw_only=True)
class RefinedConfirmation:
    """What was recommended, refined, on text that had no part in choosing or refining it.

    Attributes:
        refined: The trial or the reference whose scales, norms and biases were tuned.
        tuned: What was tuned, on what, and what the text that was held back says of it.
        sentence: The verdict on other text.
        rows: What was measured there.
        comparisons: The refined model against what it was made of and the references, by divergence.
        kept_step: The step whose values were kept; 0 where none was better than the start.
        looks: KL on what was held back, on the way.
    """

    refined: str
    tuned: str
    sentence: str
    rows: tuple[ConfirmedScore, ...]
    comparisons: tuple[ConfirmedComparison, ...]
    kept_step: int = 0
    looks: tuple[HeldBack, ...] = ()
