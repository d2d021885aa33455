"""The ranges of groups: those that hold every weight, or those that lose least where it matters.

Responsible for the search over shrunken and widened ranges (docs/methods.md, range search; llm-compressor's imatrix
observer and NNCF's scale estimation search alike). May assume finite float32 weights. Shape letters: `O` outputs, `I`
inputs, `G` groups.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from quant.matmul import piece_elements
from quant.rounding.inputs import ScaledInputs
from quant.scheme import Ranges, Scheme, decode_, encode, encode_, group_ranges, grouped, stored_scale
from quant.statistics import InputStatistics

SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 1.05)
"""Of the range that holds every weight; the first is that range itself, which wins ties."""
FEW_SHARES = (1.0, 0.9)
"""Those that are tried for every input scale that is searched, with the zero point or the sign of the whole range."""


def find_ranges(weight: Tensor, scheme: Scheme, inputs: ScaledInputs, search: str) -> Ranges:
    """Find the ranges of the groups of a matrix.

    Args:
        weight: `W S`, float32 `[O, I]`.
        scheme: What its values can be.
        inputs: Statistics of what it is multiplied with; `G'` is their Gram matrix.
        search: `none` holds every weight. Else each group has the share of that range, and on an asymmetric scheme
            the zero point beside the exact one, of the least loss of nearest rounding: `diagonal` takes
            `Σ_j G'_jj Δ_j²`, `block` takes `Δ_g G'_gg Δ_gᵀ`.
    """
    groups = grouped(weight, scheme)
    if search == "none":
        return group_ranges(groups, scheme)
    curvature = _blocks(inputs, groups.shape[-1]) if search == "block" else _diagonals(inputs, groups.shape[-1])
    parts = [_search(rows, _candidates(rows, scheme), scheme, curvature) for rows in _chunks(groups)]
    zeros = [part.zero for part in parts if part.zero is not None]
    return Ranges(scale=torch.cat([part.scale for part in parts]), zero=torch.cat(zeros) if zeros else None)


def effective_in_ranges(weight: Tensor, scale: Tensor, scheme: Scheme, statistics: InputStatistics) -> Tensor:
    """`W_eff = Q(W S) / S` `[O, I]` where Q has ranges of a few shares, searched by the diagonal.

    A stand-in for the codes that are stored, for the search for S: where groups are clipped, another S is best than
    where they are not.
    """
    scaled = weight * scale
    groups = grouped(scaled, scheme)
    curvature = _diagonals(ScaledInputs(statistics=statistics, scale=scale), groups.shape[-1])
    for rows in _chunks(groups):
        whole = group_ranges(rows, scheme)
        ranges = _search(rows, Ranges(scale=_shares(whole, FEW_SHARES, scheme), zero=whole.zero), scheme, curvature)
        decode_(encode_(rows, ranges, scheme), ranges)
    return groups.flatten(1)[:, : weight.shape[1]].div_(scale)


def _chunks(groups: Tensor) -> tuple[Tensor, ...]:
    """Split `[O, G, group]` into rows that stay in a processor's cache; what is written to them is written to it."""
    elements = piece_elements(groups.device.type)
    return torch.split(groups, max(1, elements // max(1, groups.shape[1] * groups.shape[2])))


def _search(groups: Tensor, candidates: Ranges, scheme: Scheme, curvature: Tensor) -> Ranges:
    """Take the candidate of least loss for each group; the first wins ties, and where no loss is finite.

    `candidates` are stacked: their scales are `[candidates, O, G, 1]`, and so are zero points that are not common.
    """
    zeros = None if candidates.zero is None else candidates.zero.expand_as(candidates.scale)
    best = torch.zeros_like(candidates.scale[0], dtype=torch.int64)
    least = torch.full_like(candidates.scale[0], torch.inf)
    for index, scale in enumerate(candidates.scale):
        candidate = Ranges(scale=scale, zero=None if zeros is None else zeros[index])
        loss = _loss(decode_(encode(groups, candidate, scheme), candidate).sub_(groups), curvature)
        better = loss < least
        least = torch.where(better, loss, least)
        best.masked_fill_(better, index)
    picked = best.unsqueeze(0)
    return Ranges(
        scale=candidates.scale.gather(0, picked).squeeze(0),
        zero=None if zeros is None else zeros.gather(0, picked).squeeze(0),
    )


def _shares(whole: Ranges, shares: Sequence[float], scheme: Scheme) -> Tensor:
    """The scales of shares of whole ranges, `[shares, O, G, 1]`."""
    return stored_scale(torch.stack([whole.scale * share for share in shares]), scheme)


def _candidates(groups: Tensor, scheme: Scheme) -> Ranges:
    """Every range that is tried, stacked as in `_search`."""
    whole = group_ranges(groups, scheme)
    scales = _shares(whole, SHARES, scheme)
    if scheme.full_range:
        # The longer end of a clipped group may be the other one.
        return Ranges(scale=torch.stack([scales, -scales], dim=1).flatten(0, 1), zero=None)
    if whole.zero is None:
        return Ranges(scale=scales, zero=None)
    # Shrinking both ends by one share leaves the exact zero point where it is.
    exact = groups.amin(-1, keepdim=True).clamp_(max=0).neg_().div_(whole.scale)
    # The zero point of the whole range is one of the two whole numbers beside it.
    other = torch.where(whole.zero > exact, exact.floor(), exact.ceil()).clamp_(0, scheme.highest)
    zeros = torch.stack([whole.zero, other]).repeat(len(SHARES), 1, 1, 1)
    return Ranges(scale=scales.repeat_interleave(2, dim=0), zero=zeros)


def _loss(errors: Tensor, curvature: Tensor) -> Tensor:
    """The loss of errors `[O, G, group]`, `[O, G, 1]`; `curvature` is `[G, group]` or `[G, group, group]`."""
    if curvature.dim() == 2:
        return errors.square_().mul_(curvature).sum(-1, keepdim=True)
    products = torch.matmul(errors.transpose(0, 1), curvature).transpose(0, 1)
    return products.mul_(errors).sum(-1, keepdim=True)


def _diagonals(inputs: ScaledInputs, size: int) -> Tensor:
    """The diagonal of `G'`, `[G, group]`; an input that fills a partial group up counts nothing."""
    return pad(inputs.diagonal, (0, -len(inputs.diagonal) % size)).view(-1, size)


def _blocks(inputs: ScaledInputs, size: int) -> Tensor:
    """The diagonal blocks of `G'`, `[G, group, group]`."""
    padding = -inputs.gram.shape[0] % size
    gram = pad(inputs.gram, (0, padding, 0, padding))
    count = gram.shape[0] // size
    return gram.view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
