"""What is told of a refinement: on what it was tuned, how it went, and what it changed on other text.

Responsible for these as values that are stored and printed. Needs no tensors, so that what only reads them is light.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PART_NAMES = {"scales": "group scales", "norms": "norms", "biases": "biases"}
"""What can be tuned, by the name that options give it."""
PARTS = tuple(PART_NAMES)
UNSAID_DRIFT, UNSAID_TOKENS = 0.1, 2048
"""What manifests of before they said it were made with."""


@dataclass(frozen=True, kw_only=True)
class HeldBack:
    """What text that is held back said after so many steps: KL from full precision, nats per token."""

    step: int
    kl: float


@dataclass(frozen=True, kw_only=True)
class Change:
    """A measure per target before and after, and the difference with its paired 95 % interval where there is one."""

    before: float
    after: float
    difference: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """Return `better`, `worse` or `not told apart`, for a measure of which less is better."""
        if self.high is not None and self.high < 0:
            return "better"
        return "worse" if self.low is not None and self.low > 0 else "not told apart"

    def __str__(self) -> str:
        digits = [f"{value:+.4f}" if value is not None else "–" for value in (self.difference, self.low, self.high)]
        return f"{self.before:.4f} before, {self.after:.4f} after, {digits[0]} [{digits[1]}, {digits[2]}]"


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What refining changed on text that it had no part in.

    Attributes:
        source: Of the text.
        part: What else the text is for.
        sequences: How many were scored.
        tokens: How many targets they have.
        kl: Nats per token from full precision.
        nll: Nats per token.
        flips: Share of targets whose most likely token is another than full precision's.
    """

    source: str
    part: str
    sequences: int
    tokens: int
    kl: Change
    nll: Change
    flips: Change


@dataclass(frozen=True, kw_only=True)
class CodeMoves:
    """How codes moved before scales were tuned.

    Attributes:
        steps: For each block.
        blocks: How many were gone through; None where nothing says it.
        of_blocks: How many there are; fewer were gone through where the time ended.
        sequences: How many were read for them.
        drift: How far all steps together moved what is rounded, in steps between codes.
        share: Of the codes that moved by a step.
        before: KL on what is held back, nats per token, with the codes as they were rounded.
        after: The same with those that moved.
    """

    steps: int
    blocks: int | None = None
    of_blocks: int | None = None
    sequences: int
    drift: float = UNSAID_DRIFT
    share: float
    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Return whether they were kept: they are only where they are nearer to full precision."""
        return self.after < self.before

    @property
    def best(self) -> float:
        """Return the KL on what is held back with the codes that were kept."""
        return min(self.after, self.before)


@dataclass(frozen=True, kw_only=True)
class RefinementTrial:
    """One of several refinements that were tried.

    Attributes:
        rate: The highest relative change of a scale in a step.
        passes: How often the text was to be read.
        batch_tokens: Of a step.
        parts: What was tuned.
        code_steps: In which the codes of a block could move.
        code_drift: How far these together could move what is rounded.
        steps: Of the optimizer that were taken.
        kl: Its least KL on what is held back, nats per token.
        finished: Whether all steps were taken.
        pruned: Whether they were not because others were nearer.
    """

    rate: float
    passes: int
    batch_tokens: int = UNSAID_TOKENS
    parts: tuple[str, ...] = PARTS
    code_steps: int
    code_drift: float = UNSAID_DRIFT
    steps: int
    kl: float
    finished: bool
    pruned: bool


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """How a model was refined: all that a person needs to judge it, and to do it again.

    Attributes:
        source: Of the text that was learned from.
        fingerprint: Of its tokens.
        sequences: How many there were.
        tokens: How many tokens were read.
        steps: Of the optimizer that were taken.
        planned_steps: How many there were to be; fewer are taken where the time ended, or values were not finite.
        passes: How often the text was to be read.
        batch_tokens: Of a step.
        seed: Of the order of the sequences.
        rate: Its highest rate: the relative change of a scale in one step.
        halvings: How often the rate was halved because a value was not finite.
        kept_step: The step whose values were kept; 0 where none was better than the start.
        validation_sequences: Held back from the text to choose that step.
        looks: What it was on the way.
        gains: What it changed on text that had no part in it.
        moves: How codes moved before; None where they stayed.
        trials: All that were tried where this is the nearest of several.
        parts: What was tuned.
    """

    source: str
    fingerprint: str
    sequences: int
    tokens: int
    steps: int
    planned_steps: int | None = None
    passes: int = 1
    batch_tokens: int = UNSAID_TOKENS
    seed: int = 0
    rate: float
    halvings: int
    kept_step: int
    validation_sequences: int
    looks: tuple[HeldBack, ...]
    gains: tuple[Gain, ...] = ()
    moves: CodeMoves | None = None
    trials: tuple[RefinementTrial, ...] = ()
    parts: tuple[str, ...] = PARTS

    @property
    def before(self) -> float:
        """Return the KL on what is held back before anything was changed."""
        return self.looks[0].kl if self.moves is None else self.moves.before

    @property
    def after(self) -> float:
        """Return the KL on what is held back at the step that was kept: the least."""
        return min(look.kl for look in self.looks)

    def sentence(self) -> str:
        """Say what was tuned, on what, what the text that was held back says of it, and whether it was ended."""
        return f"{self._outcome()}{self._ended()}"

    def _outcome(self) -> str:
        text = f"{self.tokens} tokens of {self.source}"
        measured = f"KL from full precision on {self.validation_sequences} sequences held back from it"
        before = f"{self.before:.4f} nats per token before"
        moved = self._moved()
        if not moved and not self.kept_step:
            kept = [*(["codes"] if self.moves is not None else []), *self._parts]
            return f"refining on {text} improved nothing ({measured}: {before}): {listed(kept)} are as they were"
        tuned = self._tuned(text) if self.kept_step else f"{listed(self._parts)} are as they were: no step was nearer"
        return f"{', and '.join([*moved, tuned])}; {measured}: {before}, {self.after:.4f} after{self._chosen()}"

    @property
    def _parts(self) -> list[str]:
        return [PART_NAMES[part] for part in self.parts]

    def _tuned(self, text: str) -> str:
        return f"{listed(self._parts)} were tuned for KL from full precision on {text} ({self.kept_step} steps)"

    def _ended(self) -> str:
        if self.moves is not None and self.moves.blocks != self.moves.of_blocks:
            return f"; ended by its time after {self.moves.blocks} of {self.moves.of_blocks} blocks"
        if self.planned_steps is None or self.steps == self.planned_steps:
            return ""
        return f"; ended after {self.steps} of {self.planned_steps} steps"

    def _chosen(self) -> str:
        if not self.trials:
            return ""
        pruned = sum(trial.pruned for trial in self.trials)
        return f", the nearest of {len(self.trials)} refinements ({pruned} pruned; rate {self.rate:.2g})"

    def _moved(self) -> list[str]:
        if self.moves is None or not self.moves.kept:
            return []
        return [
            f"{100 * self.moves.share:.1f} % of the codes were moved by a step for the outputs of blocks "
            f"({self.moves.steps} steps each on {self.moves.sequences} sequences)"
        ]


def listed(names: Sequence[str]) -> str:
    """List names in a sentence: `a`, `a and b`, `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
