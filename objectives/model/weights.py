"""Put the weights of a model back after they were changed, and tell whether two changes are the same.

Responsible for weights, biases and norms in memory. May assume room for a copy of those that may change.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import xxhash
from torch import Tensor, nn

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers of as many bytes as a value."""
SEED = 20260726
MOST_HASHED = 2**24
"""Values that are hashed at a time: they take eight bytes each meanwhile."""


@contextmanager
def weights_restored(modules: Sequence[nn.Module]) -> Iterator[Mapping[nn.Parameter, Tensor]]:
    """Undo whatever the block does to the weights and biases of these modules; yields the copy it holds of each.

    A module may be named more than once: a fused Linear for every role it plays.
    """
    parameters = _parameters(modules)
    originals = {parameter: parameter.detach().clone() for parameter in parameters}
    try:
        yield originals
    finally:
        for parameter, original in originals.items():
            parameter.copy_(original)


@torch.inference_mode()
def fingerprint(modules: Sequence[nn.Module]) -> str:
    """Return 128 bits of the weights and biases of these modules, as hexadecimal: equal ones compute the same.

    Each tensor is hashed where it lies, and all hashes are read at once.
    """
    parameters = _parameters(modules)
    if not parameters:
        return str(xxhash.xxh3_128_hexdigest(b""))
    shapes = [f"{parameter.dtype} {tuple(parameter.shape)}" for parameter in parameters]
    hashes = torch.stack([_hash(parameter.detach()) for parameter in parameters]).tolist()
    return str(xxhash.xxh3_128_hexdigest(repr((shapes, hashes)).encode()))


def _parameters(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return list(dict.fromkeys(parameter for module in modules for parameter in module.parameters(recurse=False)))


def _hash(tensor: Tensor) -> Tensor:
    """Return `sum_o b_o sum_i a_i x_oi` modulo 2^64 of the bits of `[..., I]` (multilinear hashing), int64 `[]`.

    With random odd `a` and `b` two tensors that differ in a value of 16 bits collide with a chance below 2^-47 (Lemire
    and Kaser 2014, The Computer Journal 57).
    """
    rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim else tensor.reshape(1, 1)
    bits = rows.contiguous().view(BITS[tensor.itemsize])
    generator = torch.Generator().manual_seed(SEED)
    across, down = (_odd(size, generator).to(tensor.device) for size in (bits.shape[1], len(bits)))
    step = max(1, MOST_HASHED // bits.shape[1])
    sums = torch.cat([(part.long() * across).sum(1) for part in torch.split(bits, step)])
    # The upper half would otherwise reach the lower one no more.
    return ((sums ^ (sums >> 32)) * down).sum()


def _odd(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator) | 1
