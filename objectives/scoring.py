"""Score a model on token sequences: negative log-likelihood per sequence, as a generator of looks.

Responsible for batches, for logits in chunks, and for stopping places. Whoever consumes the looks decides whether to
go on. May assume nothing about the model but that it is causal. Shape letters: `B` sequences, `T` tokens, `F`
features, `V` vocabulary.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from objectives.model.memory import is_out_of_memory, release_cached
from objectives.progress import Progress
from objectives.text.batches import Batch, batches
from objectives.text.sequences import Sequences

log = logging.getLogger(__name__)

BATCH_TOKENS = 4096
LOGIT_BYTES = 2**27
# Logits in float32 that stay in a processor's cache while their softmax is taken.
CPU_PIECE = 2**20
FIRST_LOOK = 8
PROBE_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Score:
    """Negative log-likelihoods of the first sequences, in the fixed order.

    Attributes:
        nll: float64 `[sequences]`, nats summed over each sequence's targets.
        tokens: int64 `[sequences]`, number of targets.
        clusters: int64 `[sequences]`, the document that most of each sequence comes from: sequences of one document
            are not independent.
    """

    nll: Tensor
    tokens: Tensor
    clusters: Tensor

    def __post_init__(self) -> None:
        if not len(self.nll) == len(self.tokens) == len(self.clusters):
            lengths = f"{len(self.nll)}, {len(self.tokens)} and {len(self.clusters)}"
            raise ValueError(f"nll, tokens and clusters of a score have different lengths: {lengths}")

    def first(self, count: int) -> "Score":
        """Return the score of the first `count` sequences."""
        return self.part(0, count)

    def part(self, start: int, end: int) -> "Score":
        """Return the score of the sequences from `start` up to but not including `end`."""
        return Score(nll=self.nll[start:end], tokens=self.tokens[start:end], clusters=self.clusters[start:end])

    @property
    def mean_nll(self) -> float:
        """Return the nats per target, every target counting the same."""
        return float(self.nll.sum() / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        """Return `exp(mean_nll)`; infinite where that overflows."""
        return math.exp(self.mean_nll) if self.mean_nll < 700 else math.inf


Features = Callable[[Batch], Tensor]
Head = Callable[[Tensor], Tensor]


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
    model: Any, sequences: Sequences, batch_tokens: int = BATCH_TOKENS, first_look: int = FIRST_LOOK
) -> Iterator[Score]:
    """Yield the score of the first 8, 16, 32, ... and finally of all sequences.

    Sequences are bucketed by length only within a look, so every look sees the same prefix of the fixed order.

    Args:
        model: A causal `PreTrainedModel` in evaluation mode.
        sequences: What to score.
        batch_tokens: Tokens run at a time; changes no sequence's value beyond rounding. Halved where memory runs out,
            down to one sequence.
        first_look: After how many sequences to yield first; from there on they double.
    """
    features, head = _halves(model, sequences)
    nll = torch.zeros(len(sequences), dtype=torch.float64)
    tokens = torch.tensor([int(scored.sum()) for scored in sequences.scored])
    clusters = torch.tensor(sequences.clusters)
    for start, end in pairwise([0, *look_sizes(len(sequences), first_look)]):
        left = list(range(start, end))
        while left:
            try:
                for batch in batches(sequences, left, batch_tokens, model.device):
                    nll[list(batch.indices)] = _nll(batch, features(batch), head).cpu()
                    left = [index for index in left if index not in batch.indices]
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or batch_tokens < 2 * max(len(sequences.ids[index]) for index in left):
                    raise
                batch_tokens //= 2
                log.warning("memory ran out; scoring %d tokens at a time from here on", batch_tokens)
                release_cached(model.device)
        yield Score(nll=nll[:end].clone(), tokens=tokens[:end], clusters=clusters[:end])


def score_all(model: Any, sequences: Sequences, phase: str, progress: Progress) -> Score:
    """Score all sequences; `progress` is told of every look under the name of `phase`."""
    for look in score(model, sequences):
        progress(phase, len(look.nll), len(sequences))
    return look


def _nll(batch: Batch, features: Tensor, head: Head) -> Tensor:
    """Return the summed negative log-likelihood of each row's targets, float64 `[B]`, from `features` `[B, T, F]`."""
    targets = batch.scored[:, 1:]
    rows = targets.nonzero()[:, 0]
    wanted, labels = features[:, :-1][targets], batch.ids[:, 1:][targets]
    total = torch.zeros(len(batch.indices), dtype=torch.float64, device=wanted.device)
    size = max(1, LOGIT_BYTES // (4 * head(wanted[:1]).shape[-1]))
    for part, label, row in zip(*(torch.split(tensor, size) for tensor in (wanted, labels, rows)), strict=True):
        total.index_add_(0, row, _cross_entropy(head(part), label).double())
    return total


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `-log softmax(logits)[label]` per row, float32 `[rows]`, from `logits` `[rows, V]` in pieces."""
    elements = CPU_PIECE if logits.device.type == "cpu" else logits.numel()
    size = max(1, elements // logits.shape[-1])
    pieces = zip(torch.split(logits, size), torch.split(labels, size), strict=True)
    return torch.cat([functional.cross_entropy(part.float(), label, reduction="none") for part, label in pieces])


def _halves(model: Any, sequences: Sequences) -> tuple[Features, Head]:
    """Split the model into features and a head on them, so that logits are made for a few tokens at a time.

    Models that do more than a matrix product after the backbone (soft caps, scaled logits) are run whole: tried on
    one short sequence instead of asked by name.
    """
    output = model.get_output_embeddings()

    def backbone(batch: Batch) -> Tensor:
        outputs = model.base_model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
        return outputs.last_hidden_state  # type: ignore[no-any-return]

    def whole(batch: Batch) -> Tensor:
        outputs = model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
        return outputs.logits  # type: ignore[no-any-return]

    short = replace(
        sequences, ids=(sequences.ids[0][:PROBE_TOKENS],), scored=(sequences.scored[0][:PROBE_TOKENS],), clusters=(0,)
    )
    probe = next(batches(short, [0], 1, model.device))
    logits = whole(probe)
    # Some have no backbone of their own, or one whose last hidden state is not what the head reads.
    if output is not None and model.base_model is not model and torch.equal(output(backbone(probe)), logits):
        return backbone, output
    return whole, lambda logits: logits
