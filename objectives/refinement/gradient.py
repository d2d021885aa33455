"""How the divergence from full precision changes with the weights of a model, batch by batch.

Responsible for the gradient of `sum KL(p || q)` with bounded memory: blocks are computed again on the way back, and
logits exist for a few rows at a time. May assume that whoever calls collects the gradients (`Tuned.pulling_back`).
Shape letters: `N` rows, `F` features, `V` vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from objectives.forward import Halves
from objectives.model.loading import Model
from objectives.model.roles import Block
from objectives.model.weights import Weights
from objectives.teacher import Teacher
from objectives.text.batches import Batch

# Logits in float32, of which there are several copies.
LOGIT_BYTES = 2**27


@contextmanager
def recomputed(
    model: Model, blocks: Sequence[Block], collecting: Callable[[str], AbstractContextManager[None]]
) -> Iterator[None]:
    """Keep no more than the inputs of decoder blocks on the way there, and compute the rest again on the way back.

    Blocks that are streamed are brought for either; `collecting` then has the gradients of one collected, on the way
    back, while its weights are at hand.
    """
    names = {block.name: model.module.get_submodule(block.name) for block in blocks}
    before = {name: vars(layer).get("forward") for name, layer in names.items()}
    for name, layer in names.items():
        if model.weights.streamed:
            layer.forward = partial(_brought, model.weights, collecting, name, layer.forward)
        else:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for name, layer in names.items():
            own = before[name]
            if own is None:
                del layer.forward
            else:
                layer.forward = own


def _brought(
    weights: Weights,
    collecting: Callable[[str], AbstractContextManager[None]],
    block: str,
    forward: Callable[..., Any],
    states: Tensor,
    *others: Any,
    **named: Any,
) -> Any:
    """Run a block whose weights are elsewhere; what comes before it need not have a gradient."""

    def run(hidden: Tensor) -> Any:
        return forward(hidden, *others, **named)

    def at_hand() -> AbstractContextManager[None]:
        return weights.at_hand(block)

    start = states if states.requires_grad else states.detach().requires_grad_()
    return _Brought.apply(run, at_hand, partial(collecting, block), start)  # type: ignore[no-untyped-call]


class _Brought(torch.autograd.Function):
    """A block that is brought before it runs, there and back; nothing of its weights outlives either.

    torch's own checkpoints hold on to the parameters of the way there, or let go of those of the way back before their
    gradients are there.
    """

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[[Tensor], Any],
        at_hand: Callable[[], AbstractContextManager[None]],
        collected: Callable[[], AbstractContextManager[None]],
        states: Tensor,
    ) -> Any:
        ctx.run, ctx.at_hand, ctx.collected = run, at_hand, collected
        ctx.save_for_backward(states)
        with at_hand():
            return run(states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        (saved,) = ctx.saved_tensors
        states = saved.detach().requires_grad_()
        with ctx.at_hand(), ctx.collected(), torch.enable_grad():
            output = ctx.run(states)
            torch.autograd.backward(output[0] if isinstance(output, tuple) else output, gradient)
        return None, None, None, states.grad


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
