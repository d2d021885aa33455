"""Whole files or none: atomic writes, checksums, free space.

Responsible for turning the operating system's refusals into one-line errors. May assume that a rename within a
directory is atomic, which POSIX and network file systems both promise.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from storage.errors import StorageError

TEMPORARY = ".tmp-"
UNSAFE = re.compile(r"[^\w.+ @=-]+")
# Characters; with a suffix, a name of any script stays below the 255 bytes that file systems take.
LONGEST_NAME = 60
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ROOM_REMEDY = "free space with `cache rm` or choose another --cache"
OTHER_REMEDY = "check the path, its permissions and the disk"


def checksum(data: bytes) -> str:
    """Return a fingerprint against damage (not against forgery): 128-bit xxh3, as hexadecimal."""
    return str(xxhash.xxh3_128_hexdigest(data))


def file_checksum(path: Path) -> str:
    """Return what `checksum` gives of a file's bytes, read piece by piece."""
    with path.open("rb") as file:
        return str(hashlib.file_digest(file, xxhash.xxh3_128).hexdigest())


def temporary_name(path: Path) -> Path:
    """Return a name beside `path` that no other process uses."""
    return path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")


def file_name(text: str) -> str:
    """Return a name that is one of a file wherever it is used: `text` where it is one, else like it and its own.

    Neither a separator nor a dot at the beginning is left, so no name leads out of a directory or hides.
    """
    safe = UNSAFE.sub("-", text).strip("-. ")[:LONGEST_NAME]
    return text if safe == text else f"{safe or 'unnamed'}-{checksum(text.encode(errors='surrogatepass'))[:8]}"


def write_file(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name, make it durable, and rename it to `path`.

    A link is followed, and what is there and is no file - a device, a pipe - is written to: no file takes their place.

    Raises:
        StorageError: If the disk is full or refuses; nothing is left behind.
    """
    if path.exists() and path.is_symlink():
        path = path.resolve()
    if path.exists() and not (path.is_file() or path.is_dir()):
        with disk_errors(path), path.open("wb") as stream:
            stream.write(data)
        return
    temporary = temporary_name(path)
    with disk_errors(path):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path, room_remedy: str = ROOM_REMEDY) -> Iterator[None]:
    """Translate the operating system's refusals while `path` is read or written."""
    try:
        yield
    except OSError as error:
        remedy = room_remedy if error.errno in NO_ROOM else OTHER_REMEDY
        raise StorageError(f"cannot use {path}: {error.strerror or error}; {remedy}") from error


def require_free(directory: Path, needed: int, remedy: str = ROOM_REMEDY) -> None:
    """Refuse before writing what will not fit.

    Raises:
        StorageError: With needed and available bytes.
    """
    with disk_errors(directory):
        free = shutil.disk_usage(directory).free
    if free < needed:
        raise StorageError(f"{directory} has {free / 1e6:,.0f} MB free and {needed / 1e6:,.0f} MB are needed; {remedy}")
