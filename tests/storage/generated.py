"""Tensors of every kind for round trips, and bitwise comparison."""

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
NAMES = st.text(st.characters(codec="utf-8"), max_size=20).filter(lambda name: name != "__metadata__")


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """A tensor of any type and up to three dimensions, scalars, empty ones, NaNs and transposed ones included."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if dtype == torch.bool:
        made = torch.randint(0, 2, shape, generator=generator).bool()
    else:
        # Any bit pattern is a value.
        size = torch.empty(shape).numel() * dtype.itemsize
        made = torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8).view(dtype).view(shape)
    return made.transpose(0, -1) if made.dim() > 1 and draw(st.booleans()) else made


def tensor_dicts() -> st.SearchStrategy[dict[str, Tensor]]:
    """What one part or one result may hold."""
    return st.dictionaries(NAMES, tensors(), max_size=4)


def same(read: dict[str, Tensor], written: dict[str, Tensor]) -> bool:
    """Same names, types, shapes and bits."""
    return read.keys() == written.keys() and all(_same(read[name], written[name]) for name in written)


def _same(first: Tensor, second: Tensor) -> bool:
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return torch.equal(_bytes(first), _bytes(second))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
