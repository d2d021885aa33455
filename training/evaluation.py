"""Responsible for how well a model predicts text: bits per byte, held-out loss, and what xz needs.

May assume a causal LM of transformers and a tokenizer whose `bos_token` separates documents.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
import torch.nn.functional as functional
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 512
STRIDE = 256
_WINDOWS_AT_ONCE = 8


def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> float:
    """Bits the model needs per UTF-8 byte of `documents`.

    Each document is predicted from the separator on; windows of 512 tokens advance by 256, so that every
    token but a document's first 256 is predicted from at least 256 tokens.

    Args:
        model: A causal language model in evaluation mode, on the CPU.
        tokenizer: Its tokenizer.
        documents: The texts; at least one byte together.

    Returns:
        Total negative log2-likelihood over total bytes.
    """
    nats = 0.0
    windows = (window for document in documents for window in _windows(tokenizer, document))
    while batch := list(islice(windows, _WINDOWS_AT_ONCE)):
        nats += _scored_nats(model, batch)
    return nats / math.log(2) / sum(len(document.encode()) for document in documents)


def _windows(tokenizer: PreTrainedTokenizerBase, document: str) -> Iterator[tuple[list[int], int]]:
    """Yield (tokens, position of the first target that no earlier window has scored)."""
    encoded = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
    tokens = [tokenizer.bos_token_id, *encoded]
    scored = 1
    for start in range(0, max(len(tokens) - STRIDE, 1), STRIDE):
        window = tokens[start : start + WINDOW]
        yield window, scored - start
        scored = start + len(window)


@torch.no_grad()
def _scored_nats(model: PreTrainedModel, batch: Sequence[tuple[list[int], int]]) -> float:
    """Sum of the negative log-likelihoods of the targets that the windows are to score."""
    longest = max(len(window) for window, _ in batch)
    inputs = torch.zeros(len(batch), longest, dtype=torch.long)
    targets = torch.full_like(inputs, -100)
    for row, (window, first) in enumerate(batch):
        # Padding on the right is invisible to a causal model's earlier positions.
        inputs[row, : len(window)] = torch.tensor(window)
        targets[row, first : len(window)] = torch.tensor(window[first:])
    return float(_summed_loss(model, inputs, targets))


@torch.no_grad()
def mean_loss(model: PreTrainedModel, blocks: Tensor) -> float:
    """Mean negative log-likelihood (nats per token) of `blocks[N, T]`, first tokens unscored."""
    total = 0.0
    for rows in torch.split(blocks, _WINDOWS_AT_ONCE):
        targets = rows.clone()
        targets[:, 0] = -100
        total += float(_summed_loss(model, rows, targets))
    return total / (blocks.shape[0] * (blocks.shape[1] - 1))


def _summed_loss(model: PreTrainedModel, inputs: Tensor, targets: Tensor) -> Tensor:
    logits = model(input_ids=inputs, use_cache=False).logits[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), reduction="sum")


def xz_bits_per_byte(training: bytes, held_out: bytes) -> float:
    """Bits per held-out byte that `xz -9e` adds when the held-out text follows the training text."""
    together = len(_xz(training + b"\n\n" + held_out))
    return 8 * (together - len(_xz(training))) / len(held_out)


def _xz(text: bytes) -> bytes:
    return lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
