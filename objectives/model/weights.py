"""Put the weights of a model back after they were changed, and tell whether two changes are the same.

Responsible for weights, biases and norms in memory, and for what is asked of weights wherever they are. May assume room
for a copy of those that may change.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
import xxhash
from torch import Tensor, nn

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers of as many bytes as a value."""
SEED = 20260726
MOST_HASHED = 2**24
"""Values that are hashed at a time: they take eight bytes each meanwhile."""


class Weights(Protocol):
    """Where the weights of a model's decoder blocks are, and how they are changed and put back."""

    streamed: bool
    """Whether they are in memory only while they are used."""

    def at_hand(self, block: str) -> AbstractContextManager[None]:
        """Have the weights of the block of this name in its modules while the context lasts."""

    def changing(self, block: str) -> AbstractContextManager[None]:
        """Have them there, and keep what is done to them until `restored` ends."""

    def as_before(
        self, block: str, layer: nn.Module, originals: Mapping[nn.Parameter, Tensor]
    ) -> AbstractContextManager[None]:
        """Have the weights of a block as they were before `restored`, which gave `originals`, while the context lasts.

        `layer` is its module. What is there afterwards is what was there before.
        """

    def restored(self, modules: Sequence[nn.Module]) -> AbstractContextManager[Mapping[nn.Parameter, Tensor]]:
        """Undo whatever is done to the weights and biases of these modules meanwhile; gives the copies it holds."""

    def fingerprint(self, modules: Sequence[nn.Module]) -> str:
        """Return 128 bits of the weights and biases of these modules; see `fingerprint`."""

    def state(self, module: Any) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """Yield the name of every tensor of the model, in its order, and what reads it."""

    def wide(self, module: Any) -> "tuple[Any, Weights]":
        """Return a copy of the model in float32, with its weights."""

    def wide_bytes(self, module: Any) -> int:
        """Return how many bytes that takes in memory."""


class HeldWeights:
    """Weights that are in memory all the time."""

    streamed = False

    def at_hand(self, block: str) -> AbstractContextManager[None]:
        """See `Weights`."""
        return nullcontext()

    def changing(self, block: str) -> AbstractContextManager[None]:
        """See `Weights`."""
        return nullcontext()

    def as_before(
        self, block: str, layer: nn.Module, originals: Mapping[nn.Parameter, Tensor]
    ) -> AbstractContextManager[None]:
        """See `Weights`."""
        return exchanged(layer, originals)

    def restored(self, modules: Sequence[nn.Module]) -> AbstractContextManager[Mapping[nn.Parameter, Tensor]]:
        """Hold a copy of each of these weights meanwhile; see `Weights`."""
        return weights_restored(modules)

    def fingerprint(self, modules: Sequence[nn.Module]) -> str:
        """See `Weights`."""
        return fingerprint(modules)

    def state(self, module: Any) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """See `Weights`."""
        for name, tensor in module.state_dict().items():
            yield name, partial(tensor.view_as, tensor)

    def wide(self, module: Any) -> tuple[Any, Weights]:
        """See `Weights`."""
        return copy.deepcopy(module).float(), self

    def wide_bytes(self, module: Any) -> int:
        """See `Weights`."""
        return 4 * sum(int(parameter.numel()) for parameter in module.parameters())


@contextmanager
def weights_restored(modules: Sequence[nn.Module]) -> Iterator[Mapping[nn.Parameter, Tensor]]:
    """Undo whatever the block does to the weights and biases of these modules; yields the copy it holds of each.

    A module may be named more than once: a fused Linear for every role it plays.
    """
    parameters = parameters_of(modules)
    originals = {parameter: parameter.detach().clone() for parameter in parameters}
    try:
        yield originals
    finally:
        for parameter, original in originals.items():
            parameter.copy_(original)


@contextmanager
def exchanged(layer: nn.Module, values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Put these values into the parameters of a module that are named, and afterwards what was there."""
    now = {parameter: parameter.detach().clone() for parameter in layer.parameters() if parameter in values}
    for parameter in now:
        parameter.copy_(values[parameter])
    try:
        yield
    finally:
        for parameter, value in now.items():
            parameter.copy_(value)


def _itself(parameter: nn.Parameter) -> Tensor:
    return parameter.detach()


@torch.inference_mode()
def fingerprint(modules: Sequence[nn.Module], value: Callable[[nn.Parameter], Tensor] = _itself) -> str:
    """Return 128 bits of the weights and biases of these modules, as hexadecimal: equal ones compute the same.

    Each tensor is hashed where it lies, and all hashes are read at once.

    Args:
        modules: What has them.
        value: Reads a parameter that is elsewhere.
    """
    parameters = parameters_of(modules)
    if not parameters:
        return str(xxhash.xxh3_128_hexdigest(b""))
    shapes = [f"{parameter.dtype} {tuple(parameter.shape)}" for parameter in parameters]
    hashes = torch.stack([_hash(value(parameter)) for parameter in parameters]).tolist()
    return str(xxhash.xxh3_128_hexdigest(repr((shapes, hashes)).encode()))


def parameters_of(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Return the weights and biases of these modules themselves, each once."""
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
