"""Codes side by side in 32-bit words, as the `pack-quantized` format of compressed-tensors has them.

Responsible for the tensors of one Linear and for their inverse. Codes fill a word from its lowest bits on, eight of
four bits, say; a signed code is stored as the number from zero on that is half of the levels above it. May assume
codes of `scheme.quantize`. Shape letters: `O` outputs, `I` inputs, `G` groups, `R` rows, `C` columns.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quant.errors import QuantizationError
from quant.scheme import IntWeight

WORD = 32
WEIGHT, SCALE, ZERO, SHAPE = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"


def pack(numbers: Tensor, bits: int = 4) -> Tensor:
    """Pack whole numbers from zero on, `[R, C]`, into int32 `[R, ceil(C / n)]`, `n = 32 / bits` to a word.

    Missing ones of the last word are 0.

    Raises:
        QuantizationError: If words do not hold a whole number of codes.
    """
    rows, columns = numbers.shape
    shifts = _shifts(bits, numbers)
    padded = torch.nn.functional.pad(numbers.to(torch.int32), (0, -columns % len(shifts)))
    # The numbers of a word share no bit, so their sum is their union; the last one's top bit becomes the sign.
    words: Tensor = (padded.reshape(rows, -1, len(shifts)) << shifts).sum(-1, dtype=torch.int32)
    return words


def unpack(words: Tensor, columns: int, bits: int = 4) -> Tensor:
    """Unpack what `pack` made: `[R, columns]`, int8, or uint8 for 8 bits."""
    numbers = (words[..., None] >> _shifts(bits, words)) & (2**bits - 1)
    flat: Tensor = numbers.reshape(len(words), -1)[:, :columns]
    return flat.to(torch.int8 if bits < 8 else torch.uint8)


def _shifts(bits: int, like: Tensor) -> Tensor:
    if WORD % bits:
        raise QuantizationError(f"codes of {bits} bits do not fill words of {WORD}; use 2, 4 or 8")
    return bits * torch.arange(WORD // bits, dtype=torch.int32, device=like.device)


def packed_tensors(weight: IntWeight) -> dict[str, Tensor]:
    """Return what is stored of one Linear.

    Returns:
        `weight_packed` int32 `[O, ceil(I / 8)]`, `weight_scale` `[O, G]`, `weight_shape` int64 `[2]`, and on an
        asymmetric scheme `weight_zero_point` int32 `[ceil(O / 8), G]`, packed along the outputs.
    """
    offset = 2 ** (weight.bits - 1) if weight.zero is None else 0
    tensors = {
        WEIGHT: pack(weight.codes.to(torch.int32) + offset, weight.bits),
        SCALE: weight.scale.clone(),
        SHAPE: torch.tensor(weight.codes.shape),
    }
    if weight.zero is not None:
        tensors[ZERO] = pack(weight.zero.T, weight.bits).T.contiguous()
    return tensors


def unpacked(tensors: Mapping[str, Tensor], bits: int = 4) -> IntWeight:
    """Invert `packed_tensors` for whole groups, which are all that the format has."""
    outputs, inputs = tensors[SHAPE].tolist()
    scale, zero = tensors[SCALE], tensors.get(ZERO)
    numbers = unpack(tensors[WEIGHT], inputs, bits)
    return IntWeight(
        codes=numbers if zero is not None else (numbers.to(torch.int32) - 2 ** (bits - 1)).to(torch.int8),
        scale=scale,
        zero=None if zero is None else unpack(zero.T, outputs, bits).T.contiguous(),
        group_size=-(-inputs // scale.shape[1]),
        bits=bits,
    )


def interleaved(parts: Sequence[tuple[Tensor, IntWeight]]) -> IntWeight:
    """Join the rows of several matrices into the one that a fused Linear is made of.

    Args:
        parts: Which rows of the whole, int64 `[R]`, and their codes; together every row once, on one scheme.
    """
    order = torch.cat([rows for rows, _ in parts]).argsort()
    zeros = [weight.zero for _, weight in parts if weight.zero is not None]
    return IntWeight(
        codes=torch.cat([weight.codes for _, weight in parts])[order],
        scale=torch.cat([weight.scale for _, weight in parts])[order],
        zero=torch.cat(zeros)[order] if zeros else None,
        group_size=parts[0][1].group_size,
        bits=parts[0][1].bits,
    )
