"""Score a model on token sequences: what it loses per sequence, as a generator of looks.

Responsible for logits in chunks, and for stopping places. Whoever consumes the looks decides whether to go on. May
assume nothing about the model but that it is causal. Shape letters: `N` rows, `F` features, `V` vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from objectives.divergence import Tokens, measured_tokens
from objectives.forward import BATCH_TOKENS, Halves, halves, run_batches
from objectives.progress import Progress
from objectives.teacher import Teacher
from objectives.text.batches import Batch
from objectives.text.sequences import Sequences

LOGIT_BYTES = 2**27
FIRST_LOOK = 8
Measure = Literal["nll", "kl", "flips"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a model loses on the first sequences, in the fixed order.

    Attributes:
        nll: float64 `[sequences]`, negative log-likelihood in nats summed over each sequence's targets.
        tokens: int64 `[sequences]`, number of targets.
        clusters: int64 `[sequences]`, the document that most of each sequence comes from: sequences of one document
            are not independent.
        kl: float64 `[sequences]`, divergence from full precision in nats, summed likewise; None where it was not
            measured.
        flips: float64 `[sequences]`, targets before which full precision holds another token most likely; None where
            `kl` is.
    """

    nll: Tensor
    tokens: Tensor
    clusters: Tensor
    kl: Tensor | None = None
    flips: Tensor | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.tensors.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the values of a score have different lengths: {lengths}")
        if (self.kl is None) != (self.flips is None):
            raise ValueError("a score has divergence and flips, or neither")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return what was measured, by name."""
        return {name: values for name, values in vars(self).items() if values is not None}

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Score":
        """Return the score whose every tensor is `change` of this one's."""
        return Score(**{name: change(values) for name, values in self.tensors.items()})

    def first(self, count: int) -> "Score":
        """Return the score of the first `count` sequences."""
        return self.part(0, count)

    def looks(self, first: int = FIRST_LOOK) -> Iterator["Score"]:
        """Yield the scores of the first sequences that `score` yielded on the way to this one."""
        return (self.first(size) for size in look_sizes(len(self.nll), first))

    def part(self, start: int, end: int) -> "Score":
        """Return the score of the sequences from `start` up to but not including `end`."""
        return self.mapped(lambda values: values[start:end])

    def of(self, measure: Measure) -> Tensor:
        """Return a measure's sums per sequence, float64 `[sequences]`.

        Raises:
            ValueError: If it was not measured.
        """
        values = self.tensors.get(measure)
        if values is None:
            raise ValueError(f"{measure} was not measured")
        return values

    def mean(self, measure: Measure) -> float:
        """Return a measure per target, every target counting the same.

        Raises:
            ValueError: If it was not measured.
        """
        return float(self.of(measure).sum() / self.tokens.sum())

    @property
    def mean_kl(self) -> float | None:
        """Return the divergence per target in nats; None where it was not measured."""
        return None if self.kl is None else self.mean("kl")

    @property
    def percent_flips(self) -> float | None:
        """Return the percent of targets that flip; None where that was not measured."""
        return None if self.flips is None else 100 * self.mean("flips")

    @property
    def mean_nll(self) -> float:
        """Return the nats per target, every target counting the same."""
        return self.mean("nll")

    @property
    def perplexity(self) -> float:
        """Return `exp(mean_nll)`; infinite where that overflows."""
        return math.exp(self.mean_nll) if self.mean_nll < 700 else math.inf


def look_sizes(total: int, first: int = FIRST_LOOK) -> list[int]:
    """After how many sequences a running score is given: `first`, twice as many, ... and all."""
    sizes = []
    size = first
    while size < total:
        sizes.append(size)
        size *= 2
    return [*sizes, total]


@torch.inference_mode()
def score(
    model: Any,
    sequences: Sequences,
    batch_tokens: int = BATCH_TOKENS,
    first_look: int = FIRST_LOOK,
    teacher: Teacher | None = None,
) -> Iterator[Score]:
    """Yield the score of the first 8, 16, 32, ... and finally of all sequences.

    Sequences are bucketed by length only within a look, so every look sees the same prefix of the fixed order.

    Args:
        model: A causal `PreTrainedModel` in evaluation mode.
        sequences: What to score.
        batch_tokens: Tokens run at a time; changes no sequence's value beyond rounding. Halved where memory runs out,
            down to one sequence.
        first_look: After how many sequences to yield first; from there on they double.
        teacher: Full precision on the same sequences; without it no divergence is measured.
    """
    model_halves = halves(model, sequences)
    names: tuple[Measure, ...] = ("nll",) if teacher is None else ("nll", "kl", "flips")
    sums = {name: torch.zeros(len(sequences), dtype=torch.float64) for name in names}
    tokens = torch.tensor([int(scored.sum()) for scored in sequences.scored])
    clusters = torch.tensor(sequences.clusters)

    def measure(batch: Batch) -> None:
        for name, values in _sums(batch, model_halves, teacher).items():
            sums[name][list(batch.indices)] = values.cpu()

    for start, end in pairwise([0, *look_sizes(len(sequences), first_look)]):
        batch_tokens = run_batches(sequences, range(start, end), batch_tokens, model.device, measure)
        measured = {name: values[:end].clone() for name, values in sums.items()}
        yield Score(tokens=tokens[:end], clusters=clusters[:end], **measured)


def score_all(
    model: Any, sequences: Sequences, phase: str, progress: Progress, teacher: Teacher | None = None
) -> Score:
    """Score all sequences; `progress` is told of every look under the name of `phase`."""
    for look in score(model, sequences, teacher=teacher):
        progress(phase, len(look.nll), len(sequences))
    return look


def _sums(batch: Batch, model: Halves, teacher: Teacher | None) -> Mapping[Measure, Tensor]:
    """Return what was measured, summed over each row's targets: float64 `[B]` each."""
    targets = batch.scored[:, 1:]
    rows, labels = targets.nonzero()[:, 0], batch.ids[:, 1:][targets]
    own = model.scored(batch)
    exact = None if teacher is None else teacher.features(batch.indices).to(own.device)
    exact_head = model.head if teacher is None or teacher.head is None else teacher.head
    # Two models' logits take the place of one's.
    size = max(1, LOGIT_BYTES // ((4 if exact is None else 8) * model.head(own[:1]).shape[-1]))
    sums: dict[Measure, Tensor] = {}
    for piece in (slice(start, start + size) for start in range(0, len(own), size)):
        teaching = None if exact is None else exact_head(exact[piece])
        for name, values in _named(measured_tokens(model.head(own[piece]), labels[piece], teaching)):
            zeros = torch.zeros(len(batch.indices), dtype=torch.float64, device=own.device)
            sums.setdefault(name, zeros).index_add_(0, rows[piece], values.double())
    return sums


def _named(tokens: Tokens) -> Iterator[tuple[Measure, Tensor]]:
    yield "nll", tokens.nll
    if tokens.kl is not None and tokens.flips is not None:
        yield "kl", tokens.kl
        yield "flips", tokens.flips
