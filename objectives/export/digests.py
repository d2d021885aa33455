"""Digests of the tensors of a model: of one that was quantized in memory, and of one that was loaded from a directory.

Responsible for saying, tensor by tensor, whether a directory holds what was measured, without a second model in memory.
May assume that both are of one class, whose parameters have the same names.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from objectives.export.kernels import packed_weights
from objectives.model.loading import Model
from quant.scheme import scale_type

PIECE = 2**24
"""Values that are hashed at a time."""


def measured_digests(model: Model) -> dict[str, str]:
    """Return the digest of every parameter of a model as it is now, in the type that its scales are stored in.

    Blocks that are not in memory are read one tensor at a time.
    """
    parameters, dtype = dict(model.module.named_parameters()), compared_dtype(model)
    states = model.weights.state(model.module)
    return {name: _digest(read(), dtype) for name, read in states if name in parameters}


def loaded_digests(module: Any, directory: Path, dtype: torch.dtype) -> dict[str, str]:
    """Return the digest of every parameter of a model that was loaded from a directory, by all of its names.

    Args:
        module: The model, which has been run: some packages unpack weights when they are used first.
        directory: Its files, for Linears that a runtime keeps packed.
        dtype: What is compared, `compared_dtype`.
    """
    return {name: _digest(tensor, dtype) for name, tensor in _tensors(module, directory)}


def compared_dtype(model: Model) -> torch.dtype:
    """Return the type in which tensors are compared: that of scales, in which runtimes read codes or above it."""
    return scale_type(model.stored_dtype)


def differing(measured: Mapping[str, str], loaded: Mapping[str, str]) -> list[str]:
    """Return the names of the tensors that are not equal, or are not there, in the model's order."""
    return [name for name, digest in measured.items() if loaded.get(name) != digest]


def _tensors(module: Any, directory: Path) -> Iterator[tuple[str, Tensor]]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    yield from parameters.items()
    yield from packed_weights(module, directory, without=parameters)


def _digest(tensor: Tensor, dtype: torch.dtype) -> str:
    """Return 128 bits of shape and values; zeros of both signs are equal."""
    state = xxhash.xxh3_128(repr(tuple(tensor.shape)).encode())
    for piece in torch.split(tensor.detach().reshape(-1), PIECE):
        values = piece.to(dtype).cpu() + 0
        state.update(values.view(torch.int16).numpy().data)
    return str(state.hexdigest())
