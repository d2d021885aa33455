"""How far a model's next-token distribution is from full precision's, per token.

Responsible for `KL(p || q) = sum_v p_v (log p_v - log q_v)` in nats, `p` full precision's (Kullback and Leibler 1951,
Annals of Mathematical Statistics 22), and for flips of the most likely token, from logits. May assume nothing about
where logits come from. Shape letters: `N` rows, `V` vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Logits in float32 that stay in a processor's cache while they are compared.
CPU_PIECE = 2**17
FAR = 1e30


@dataclass(frozen=True)
class Tokens:
    """What was measured at each target.

    Attributes:
        nll: float64 `[N]`, `-log q_label` in nats.
        kl: float64 `[N]`, `KL(p || q)` in nats; None without a teacher.
        flips: bool `[N]`, whether `q` holds another token more likely than any that `p` holds most likely, so that a
            tie is no flip; None without a teacher.
    """

    nll: Tensor
    kl: Tensor | None = None
    flips: Tensor | None = None


def measured_tokens(logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tokens:
    """Measure the targets of some rows, in pieces.

    Args:
        logits: `[N, V]`, of the model that is scored.
        labels: int64 `[N]`.
        teacher: `[N, V]`, logits of full precision.
    """
    elements = CPU_PIECE if logits.device.type == "cpu" else logits.numel()
    size = max(1, elements // logits.shape[-1])
    labelled = list(zip(torch.split(logits, size), torch.split(labels, size), strict=True))
    if teacher is None:
        return Tokens(torch.cat([_Normalised(part.float()).nll(label) for part, label in labelled]))
    pieces = [
        _compared(_Normalised(part.float()), label, _Normalised(exact.float()))
        for (part, label), exact in zip(labelled, torch.split(teacher, size), strict=True)
    ]
    nll, kl, flips = (torch.cat(column) for column in zip(*pieces, strict=True))
    return Tokens(nll, kl, flips)


class _Normalised:
    """Logits, float32 `[N, V]`, with what makes them probabilities: sums in float32, their logarithms in float64."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.largest = logits.amax(-1, keepdim=True)
        self.below_largest = logits - self.largest
        self.exponentials = self.below_largest.exp()
        self.sums = self.exponentials.sum(-1).double()

    @property
    def log_sums(self) -> Tensor:
        """Return `log sum_v exp(logit_v)`, float64 `[N]`."""
        return self.largest[:, 0].double() + self.sums.log()

    def nll(self, labels: Tensor) -> Tensor:
        """Return the negative log-likelihood of each row's label, float64 `[N]`."""
        return self.log_sums - self.logits.gather(1, labels[:, None])[:, 0].double()


def _compared(own: _Normalised, labels: Tensor, exact: _Normalised) -> tuple[Tensor, Tensor, Tensor]:
    # The sum of logits' differences, and the difference of the sums' logarithms: less rounding than of log p - log q.
    # What has no probability adds nothing, even where the other model says the same: 0 times an infinity is left out.
    products = (exact.logits - own.logits).mul_(exact.exponentials)
    kl = products.nansum(-1).double() / exact.sums - (exact.log_sums - own.log_sums)
    # The largest of the student's logits where the teacher's is largest: masks and comparisons take ten times as long.
    first = torch.add(own.logits, exact.below_largest, alpha=FAR).amax(-1)
    return own.nll(labels), kl, first < own.largest[:, 0]
