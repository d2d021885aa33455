"""INT4 codes side by side in 32-bit words, as the `pack-quantized` format of compressed-tensors has them.

Responsible for the tensors of one Linear and for their inverse. Eight codes fill a word, the first in its lowest
bits; a code is stored as the number 0..15 that is 8 above its signed value. May assume codes of `grid.quantize`.
Shape letters: `O` outputs, `I` inputs, `G` groups, `R` rows, `C` columns.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quant.grid import BITS, LEVELS, IntWeight

PER_WORD = 32 // BITS
WEIGHT, SCALE, ZERO, SHAPE = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"


def pack(numbers: Tensor) -> Tensor:
    """Whole numbers 0..15 `[R, C]` as int32 `[R, ceil(C / 8)]`; missing ones of the last word are 0."""
    rows, columns = numbers.shape
    padded = torch.nn.functional.pad(numbers.to(torch.int32), (0, -columns % PER_WORD))
    shifts = BITS * torch.arange(PER_WORD, dtype=torch.int32, device=numbers.device)
    # The eight numbers share no bit, so their sum is their union; the last one's top bit becomes the sign.
    words: Tensor = (padded.reshape(rows, -1, PER_WORD) << shifts).sum(-1, dtype=torch.int32)
    return words


def unpack(words: Tensor, columns: int) -> Tensor:
    """The inverse of `pack`: int8 `[R, columns]`, 0..15."""
    shifts = BITS * torch.arange(PER_WORD, dtype=torch.int32, device=words.device)
    numbers = (words[..., None] >> shifts) & (LEVELS - 1)
    flat: Tensor = numbers.reshape(len(words), -1)[:, :columns]
    return flat.to(torch.int8)


def packed_tensors(weight: IntWeight) -> dict[str, Tensor]:
    """What is stored of one Linear.

    Returns:
        `weight_packed` int32 `[O, ceil(I / 8)]`, `weight_scale` `[O, G]`, `weight_shape` int64 `[2]`, and on an
        asymmetric grid `weight_zero_point` int32 `[ceil(O / 8), G]`, packed along the outputs.
    """
    offset = LEVELS // 2 if weight.zero is None else 0
    tensors = {
        WEIGHT: pack(weight.codes + offset),
        SCALE: weight.scale.clone(),
        SHAPE: torch.tensor(weight.codes.shape),
    }
    if weight.zero is not None:
        tensors[ZERO] = pack(weight.zero.T).T.contiguous()
    return tensors


def unpacked(tensors: Mapping[str, Tensor]) -> IntWeight:
    """The inverse of `packed_tensors` for whole groups, which are all that the format has."""
    outputs, inputs = tensors[SHAPE].tolist()
    scale, zero = tensors[SCALE], tensors.get(ZERO)
    offset = LEVELS // 2 if zero is None else 0
    return IntWeight(
        codes=unpack(tensors[WEIGHT], inputs) - offset,
        scale=scale,
        zero=None if zero is None else unpack(zero.T, outputs).T.contiguous(),
        group_size=-(-inputs // scale.shape[1]),
    )


def interleaved(parts: Sequence[tuple[Tensor, IntWeight]]) -> IntWeight:
    """One matrix of the rows of several: what a fused Linear is made of.

    Args:
        parts: Which rows of the whole, int64 `[R]`, and their codes; together every row once, on one grid.
    """
    order = torch.cat([rows for rows, _ in parts]).argsort()
    zeros = [weight.zero for _, weight in parts if weight.zero is not None]
    return IntWeight(
        codes=torch.cat([weight.codes for _, weight in parts])[order],
        scale=torch.cat([weight.scale for _, weight in parts])[order],
        zero=torch.cat(zeros)[order] if zeros else None,
        group_size=parts[0][1].group_size,
    )
