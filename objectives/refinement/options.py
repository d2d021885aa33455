"""How a model is refined: rate, steps and the text that is read, and which of its sequences each step reads.

Responsible for checking these, and for an order that depends on the seed alone. May assume nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from objectives.errors import InputError
from objectives.refinement_record import PARTS, HeldBack
from objectives.text.sequences import Sequences

RATE, BATCH_TOKENS, PASSES, CODE_STEPS, CODE_DRIFT = 1e-3, 2048, 1, 50, 0.2
WARM_UP = 0.1
"""Of all steps: so long does the rate rise."""


class TooLittleTimeError(InputError):
    """The time that was given is less than the smallest piece of work takes."""


GoesOn = Callable[[Sequence[HeldBack]], bool]
"""Says after each look, from all until then, whether a refinement is worth more steps."""


def to_the_end(_: Sequence[HeldBack]) -> bool:
    """Give nothing up."""
    return True


@dataclass(frozen=True, kw_only=True)
class RefinementText:
    """What refining reads.

    Attributes:
        training: What it learns from.
        validation: What the best step is chosen by: other documents of the same source.
    """

    training: Sequences
    validation: Sequences


@dataclass(frozen=True, kw_only=True)
class RefinementOptions:
    """How to refine.

    Attributes:
        rate: The highest relative change of a scale in one step.
        batch_tokens: Tokens of a step, in whole sequences.
        passes: How often the text is read.
        parts: What is tuned, of `PARTS`.
        code_steps: In which the codes of a block may move; 0 leaves them as they are.
        code_drift: How far all of them together move what is rounded, in steps between codes: no code moves that was
            not as near to its boundary.
        code_batch_tokens: Tokens of one of them, in whole sequences.
        seed: Of the order of the sequences.
        timeout: Seconds after which no step begins; None for as long as it takes.
    """

    rate: float = RATE
    batch_tokens: int = BATCH_TOKENS
    passes: int = PASSES
    parts: tuple[str, ...] = PARTS
    code_steps: int = CODE_STEPS
    code_drift: float = CODE_DRIFT
    code_batch_tokens: int = BATCH_TOKENS
    seed: int = 0
    timeout: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.rate < 1:
            problems.append(f"a refining rate of {self.rate:g} is not between 0 and 1; {RATE:g} is usual")
        if self.batch_tokens < 1 or self.passes < 1:
            problems.append(
                f"{self.passes} passes in steps of {self.batch_tokens} tokens read nothing; give 1 at least"
            )
        if unknown := [part for part in self.parts if part not in PARTS]:
            problems.append(f"--refine-parts has {', '.join(unknown)}; give some of {','.join(PARTS)}")
        if not self.parts:
            problems.append(f"--refine-parts is empty; give some of {','.join(PARTS)}")
        if self.code_steps < 0:
            problems.append(f"--refine-codes {self.code_steps} is less than 0")
        if not 0 < self.code_drift <= 1:
            problems.append(f"--refine-drift {self.code_drift:g} is not above 0 and at most 1; {CODE_DRIFT:g} is usual")
        if self.timeout is not None and not self.timeout > 0:
            problems.append(f"--refine-timeout {self.timeout:g} is not above 0")
        if problems:
            raise InputError("; ".join(problems))

    def steps(self, text: Sequences) -> list[list[int]]:
        """List the sequences of each step: every pass reads all of them, in an order of its own."""
        together = sequences_of(text, self.batch_tokens)
        generator = torch.Generator().manual_seed(self.seed)
        orders = [torch.randperm(len(text), generator=generator).tolist() for _ in range(self.passes)]
        return [order[start : start + together] for order in orders for start in range(0, len(order), together)]

    def rate_at(self, step: int, steps: int) -> float:
        """Return the rate of a step, counted from 0: it rises along a line, then falls along half a cosine."""
        rising = max(1, round(WARM_UP * steps))
        if step < rising:
            return self.rate * (step + 1) / rising
        return self.rate * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2


def sequences_of(text: Sequences, tokens: int) -> int:
    """Return how many sequences are read together where a step is to read so many tokens."""
    return max(1, tokens // max(map(len, text.ids)))


def tokens_of(text: Sequences, steps: Sequence[Sequence[int]]) -> int:
    """Count the tokens that these steps read."""
    return sum(len(text.ids[index]) for step in steps for index in step)
