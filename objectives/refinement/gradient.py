"""How the divergence from full precision changes with the weights of a model, batch by batch.

Responsible for the gradient of `sum KL(p || q)` with bounded memory: blocks are computed again on the way back, and
logits exist for a few rows at a time. May assume that whoever calls collects the gradients (`Tuned.pulling_back`).
Shape letters: `N` rows, `F` features, `V` vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from objectives.forward import Halves
from objectives.model.roles import Block
from objectives.teacher import Teacher
from objectives.text.batches import Batch

# Logits in float32, of which there are several copies.
LOGIT_BYTES = 2**27


@contextmanager
def recomputed(module: Any, blocks: Sequence[Block]) -> Iterator[None]:
    """Keep no more than the inputs of decoder blocks on the way there, and compute the rest again on the way back."""
    layers: list[nn.Module] = [module.get_submodule(block.name) for block in blocks]
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                del layer.forward
            else:
                layer.forward = own


def pull_back(model: Halves, batch: Batch, teacher: Teacher) -> Tensor:
    """Run the model there and back; the gradient that goes back is that of the sum over the batch's targets.

    Returns:
        That sum of `KL(p || q)` in nats, float64.
    """
    own = model.scored(batch)
    exact = teacher.features(batch.indices).to(own.device)
    head = model.head if teacher.head is None else teacher.head
    with torch.no_grad():
        vocabulary = head(exact[:1]).shape[-1]
    size = max(1, LOGIT_BYTES // (8 * vocabulary))
    pieces = [piece.requires_grad_() for piece in torch.split(own.detach(), size)]
    total = torch.zeros((), dtype=torch.float64, device=own.device)
    for piece, exact_piece in zip(pieces, torch.split(exact, size), strict=True):
        logits = model.head(piece)
        with torch.no_grad():
            kl, gradient = _divergence(logits, head(exact_piece))
        total += kl
        torch.autograd.backward(logits, gradient)
    torch.autograd.backward(own, torch.cat([piece.grad for piece in pieces if piece.grad is not None]))
    return total


def _divergence(logits: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    """Return `sum_n KL(p_n || q_n)`, float64, and its gradient `q - p` by the logits `[N, V]`."""
    log_q, log_p = logits.float().log_softmax(-1), exact.float().log_softmax(-1)
    p = log_p.exp()
    # What has no probability in either adds nothing: 0 times a difference of infinities.
    kl = log_p.sub_(log_q).mul_(p).nansum(-1).double().sum()
    return kl, log_q.exp_().sub_(p).to(logits.dtype)
