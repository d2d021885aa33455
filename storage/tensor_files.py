"""Tensors in files that are read one at a time, each into memory of its own, and a file that vanishes with its process.

Responsible for bytes at an offset of an open file: nothing is mapped, so what was read is gone when its tensor is. May
assume that whoever asks knows type and shape; a file that was written to since it was opened is refused.
"""

import json
import os
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storage.errors import ChangedFileError, StorageError
from storage.files import disk_errors

LENGTH_BYTES = 8
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What safetensors calls the types that weights may have."""
SCRATCH_REMEDY = "free space, or give another place with --offload"


class OpenFile:
    """A file that is read from until nobody needs it; it may be deleted meanwhile, but not written to."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            StorageError: If it cannot be opened.
        """
        self._path = path
        with disk_errors(path):
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # Whoever reads it last closes it: nobody else can tell when that is.
        weakref.finalize(self, os.close, self._descriptor)
        self._stamp = self._now()

    def read(self, offset: int, into: Tensor) -> None:
        """Fill a contiguous tensor on the CPU with the bytes from `offset` on.

        Raises:
            ChangedFileError: If the file is not what it was when it was opened.
            StorageError: If the disk refuses.
        """
        if self._now() != self._stamp:
            raise ChangedFileError(
                f"{self._path} was written to while its weights were in use; give the command again, which reads them "
                "anew"
            )
        with disk_errors(self._path):
            read_bytes(self._descriptor, offset, into, self._path)

    def _now(self) -> tuple[int, int]:
        about = os.fstat(self._descriptor)
        return about.st_size, about.st_mtime_ns


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in an open file."""

    file: "OpenFile | ScratchFile"
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Return how many bytes it takes."""
        return prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Read it, on the CPU.

        Raises:
            ChangedFileError: If its file is not what it was when it was opened.
            StorageError: If the disk refuses.
        """
        tensor = torch.empty(self.shape, dtype=self.dtype)
        self.file.read(self.offset, tensor)
        return tensor


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name; those of types that weights never have are left out.

    Raises:
        StorageError: If the file cannot be opened, or has no header.
    """
    file = OpenFile(path)
    try:
        with path.open("rb") as opened:
            length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
            header = json.loads(opened.read(length))
        return {
            name: StoredTensor(
                file=file,
                offset=LENGTH_BYTES + length + about["data_offsets"][0],
                dtype=TYPES[about["dtype"]],
                shape=tuple(about["shape"]),
            )
            for name, about in header.items()
            if name != "__metadata__" and about["dtype"] in TYPES
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} has no safetensors header; get it again") from error


class ScratchFile:
    """Room on the disk that has no name, so that nothing is left of it whatever happens to its process."""

    def __init__(self, directory: Path) -> None:
        """Make it; it takes nothing yet.

        Raises:
            StorageError: If the directory cannot be written to.
        """
        self._directory = directory
        with disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._descriptor, name = tempfile.mkstemp(dir=directory)
            os.unlink(name)
        weakref.finalize(self, os.close, self._descriptor)

    def write(self, offset: int, tensor: Tensor) -> StoredTensor:
        """Write a tensor from `offset` on; returns where it is.

        Raises:
            StorageError: If the disk is full or refuses.
        """
        with disk_errors(self._directory, SCRATCH_REMEDY):
            for start, piece in _pieces(tensor.detach().cpu().contiguous()):
                done = 0
                while done < len(piece):
                    done += os.pwrite(self._descriptor, piece[done:], offset + start + done)
        return StoredTensor(file=self, offset=offset, dtype=tensor.dtype, shape=tuple(tensor.shape))

    def read(self, offset: int, into: Tensor) -> None:
        """Fill a contiguous tensor on the CPU with the bytes from `offset` on."""
        with disk_errors(self._directory):
            read_bytes(self._descriptor, offset, into, self._directory)

    def shorten(self, size: int) -> None:
        """Give back everything beyond `size` bytes."""
        with disk_errors(self._directory):
            os.ftruncate(self._descriptor, size)


def read_bytes(descriptor: int, offset: int, into: Tensor, path: Path) -> None:
    """Fill a contiguous tensor on the CPU with what a file has from `offset` on.

    Raises:
        StorageError: If the file ends before that.
    """
    for start, piece in _pieces(into):
        done = 0
        while done < len(piece):
            count = os.preadv(descriptor, [piece[done:]], offset + start + done)
            if not count:
                raise StorageError(f"{path} ends before all of a tensor; get it again")
            done += count


def _pieces(tensor: Tensor) -> Iterator[tuple[int, memoryview]]:
    """Yield the bytes of a contiguous tensor on the CPU, at most 1 GB at a time: the system takes no more at once."""
    if not tensor.numel():
        return
    values: Any = tensor.view(-1).view(torch.uint8).numpy()
    whole = memoryview(values)
    for start in range(0, len(whole), 2**30):
        yield start, whole[start : start + 2**30]
