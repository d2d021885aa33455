"""Directories that a model is written to: whole or absent.

Responsible for the place - vacant, with room, filled under a temporary name beside it and renamed once it is complete
and durable - and for counting what is in it. May assume nothing about what is written into it. Of two writers of one
directory the first to finish has it and the other is refused; a writer that is killed leaves only its temporary
directory, which the next one names.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import psutil
from safetensors import SafetensorError

from storage.errors import StorageError
from storage.files import TEMPORARY, disk_errors, require_free, temporary_name

log = logging.getLogger(__name__)

REMEDY = "free space or choose another --output-dir"
HEADER_LENGTH_BYTES = 8


def require_vacant(directory: Path, needed: int) -> None:
    """Refuse, before any work is done, a place where `needed` bytes cannot be written.

    Raises:
        StorageError: If something is there already, the place is not writable or the disk has no room.
    """
    target = directory.resolve()
    _require_nothing_at(target)
    for leftover in leftovers(target):
        log.warning(
            "%s was left by a writer that died (%.0f MB); remove it, unless one on another machine is at it",
            leftover,
            disk_bytes(leftover) / 1e6,
        )
    parent = next(parent for parent in target.parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(f"cannot write to {parent}; choose another --output-dir")
    require_free(parent, needed, REMEDY)


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """Fill the directory that is yielded; it appears as `directory` when the block ends without an error.

    Missing parents are made. Inside the block, errors of the disk become `StorageError`.

    Raises:
        StorageError: If something is there already, or the disk is full or refuses; nothing is left behind.
    """
    target = directory.resolve()
    _require_nothing_at(target)
    temporary = temporary_name(target)
    try:
        with disk_errors(target, REMEDY):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            mode = temporary.stat().st_mode
            for path in (*temporary.rglob("*"), temporary):
                # Some writers let only their owner read a file, others follow the umask, as this directory does.
                path.chmod(mode if path.is_dir() else mode & 0o666)
                _make_durable(path)
            # An empty directory is replaced; one that was filled meanwhile refuses.
            temporary.rename(target)
            _make_durable(target.parent)
    except SafetensorError as error:
        raise StorageError(f"cannot write {target}: {error}; {REMEDY}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def leftovers(target: Path) -> list[Path]:
    """Return the temporary directories beside a target whose writers no longer run on this machine."""
    abandoned = []
    for path in sorted(target.parent.glob(f"{TEMPORARY}{escape(target.name)}-*")):
        writer = path.name.split("-")[-2]
        if path.is_dir() and writer.isdigit() and not psutil.pid_exists(int(writer)):
            abandoned.append(path)
    return abandoned


def disk_bytes(directory: Path) -> int:
    """Return the bytes that the files of a directory take."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def tensor_bytes(directory: Path) -> dict[str, int]:
    """Return what every tensor takes in the safetensors files of a directory, by their headers.

    Raises:
        StorageError: If a file cannot be read.
    """
    sizes: dict[str, int] = {}
    with disk_errors(directory):
        for path in sorted(directory.glob("*.safetensors")):
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")))
            places = {name: about["data_offsets"] for name, about in header.items() if name != "__metadata__"}
            sizes |= {name: end - start for name, (start, end) in places.items()}
    return sizes


def _require_nothing_at(target: Path) -> None:
    with disk_errors(target):
        occupied = any(target.iterdir()) if target.is_dir() else target.exists()
    if occupied:
        raise StorageError(f"{target} exists already; choose another --output-dir or remove it first")


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
