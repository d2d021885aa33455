"""Batches of token sequences: padded, masked, at most so many tokens at a time.

Responsible for the one way in which sequences become model inputs. May assume causal models: tokens after a
sequence's end cannot influence the ones before it, so padding goes to the right.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.text.sequences import Sequences


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences side by side.

    Attributes:
        indices: Which sequences, in the order of the rows.
        ids: int64 `[B, T]`, zeros where padded.
        attention: bool `[B, T]`, True on tokens; None when no token is padding.
        scored: bool `[B, T]`, True on tokens that count as targets.
    """

    indices: tuple[int, ...]
    ids: Tensor
    attention: Tensor | None
    scored: Tensor


def batches(sequences: Sequences, indices: Sequence[int], tokens: int, device: torch.device) -> Iterator[Batch]:
    """Batch the sequences named by `indices`, longest first, at most `tokens` padded tokens each (but never none).

    Sequences of similar length share a batch, so little is padded.
    """
    order = sorted(indices, key=lambda index: -len(sequences.ids[index]))
    while order:
        width = len(sequences.ids[order[0]])
        count = max(1, tokens // width)
        yield _collate(sequences, order[:count], width, device)
        order = order[count:]


def _collate(sequences: Sequences, indices: Sequence[int], width: int, device: torch.device) -> Batch:
    ids = torch.zeros(len(indices), width, dtype=torch.int64)
    attention = torch.zeros(len(indices), width, dtype=torch.bool)
    scored = torch.zeros(len(indices), width, dtype=torch.bool)
    for row, index in enumerate(indices):
        length = len(sequences.ids[index])
        ids[row, :length] = sequences.ids[index]
        attention[row, :length] = True
        scored[row, :length] = sequences.scored[index]
    return Batch(
        indices=tuple(indices),
        ids=ids.to(device),
        attention=None if bool(attention.all()) else attention.to(device),
        scored=scored.to(device),
    )
