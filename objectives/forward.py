"""Run a causal model on batches, in two halves: up to the features that its head reads, and the head.

Responsible for logits of a few tokens at a time whatever a family does to them - asked of the model, not of a list of
names - and for smaller batches where memory runs out. May assume a model in evaluation mode. Shape letters: `B`
sequences, `T` tokens, `N` rows, `F` features, `V` vocabulary.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from objectives.model.layouts import UNUSABLE
from objectives.model.memory import is_out_of_memory, release_cached
from objectives.text.batches import Batch, batches
from objectives.text.sequences import Sequences
from storage.errors import StorageError

log = logging.getLogger(__name__)

BATCH_TOKENS = 4096
PROBE_TOKENS = 8
# Far above what 16-bit types round away, far below what another token's logits are.
ROUNDING = 0.05


@dataclass(frozen=True, kw_only=True)
class Halves:
    """A causal model as two functions.

    Attributes:
        features: From a batch to `[B, T, F]`.
        head: From rows of features `[N, F]` to logits `[N, V]`, with whatever scales and soft caps the model has.
        whole: Whether the features are the logits themselves, because no head on one hidden state gives them.
    """

    features: Callable[[Batch], Tensor]
    head: Callable[[Tensor], Tensor]
    whole: bool

    def scored(self, batch: Batch) -> Tensor:
        """Return the features that predict the batch's targets, `[N, F]`, sequence by sequence."""
        return self.features(batch)[:, :-1][batch.scored[:, 1:]]


@torch.inference_mode()
def halves(model: Any, sequences: Sequences) -> Halves:
    """Split a model; tried on one short sequence, and run whole where the halves do not give its very logits."""

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
    # Some have no backbone of their own.
    heads = [] if model.base_model is model else [model.get_output_embeddings(), _Head(model)]
    logits = whole(probe)[0]
    for head in heads:
        try:
            features = backbone(probe)[0]
            # Each row's logits must be its own: in another order they are the same, but for rounding.
            same = torch.equal(head(features), logits)
            same = same and torch.allclose(head(features.flip(0)).flip(0), logits, rtol=ROUNDING, atol=ROUNDING)
        except StorageError:
            raise
        except UNUSABLE:
            same = False
        if same:
            return Halves(features=backbone, head=head, whole=False)
    return Halves(features=whole, head=lambda logits: logits, whole=True)


class _Head:
    """What a model does after its backbone, run by the model's own code on features that are handed to it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)

    def __call__(self, features: Tensor) -> Tensor:
        handed = BaseModelOutputWithPast(last_hidden_state=features[None])
        with _answering(self._model.base_model, handed):
            return self._model(input_ids=self._ids, use_cache=False).logits[0]  # type: ignore[no-any-return]


@contextmanager
def _answering(module: nn.Module, answer: object) -> Iterator[None]:
    """Have a module return `answer` whatever it is called with."""
    own = vars(module).get("forward")
    # An attribute of the instance is called instead of the class's method.
    module.forward = lambda *_, **__: answer
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def run_batches(
    sequences: Sequences,
    indices: Sequence[int],
    batch_tokens: int,
    device: torch.device,
    use: Callable[[Batch], None],
) -> int:
    """Hand the sequences named by `indices` to `use`, batch by batch; returns how many tokens fit into a batch.

    Batches are halved where memory runs out, down to one sequence.
    """
    left = list(indices)
    while left:
        try:
            for batch in batches(sequences, left, batch_tokens, device):
                use(batch)
                left = [index for index in left if index not in batch.indices]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or batch_tokens < 2 * max(len(sequences.ids[index]) for index in left):
                raise
            batch_tokens //= 2
            log.warning("memory ran out; scoring %d tokens at a time from here on", batch_tokens)
            release_cached(device)
    return batch_tokens
