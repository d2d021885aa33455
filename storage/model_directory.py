"""Directories that a model is written to: whole or absent.

Responsible for the place - vacant, with room, filled under a temporary name beside it and renamed once it is complete
and durable - for several that are whole together, and for counting what is in one. May assume nothing about what is
written. Of two writers of one directory the first to finish has it and the other is refused; a writer that is killed
leaves only its temporary directory, which the next one names.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import psutil
from safetensors import SafetensorError

from storage.errors import AddressError, StorageError
from storage.files import TEMPORARY, disk_errors, require_free, temporary_name

log = logging.getLogger(__name__)

REMEDY = "free space or choose another --output-dir"
HEADER_LENGTH_BYTES = 8


def require_vacant(directory: Path, needed: int) -> None:
    """Refuse, before any work is done, a place where `needed` bytes cannot be written.

    Raises:
        AddressError: If something is there already, or the place is not writable.
        StorageError: If the disk has no room, or refuses.
    """
    target = directory.resolve()
    _require_nothing_at(target, AddressError)
    # Several directories may have been filled in one for their common parent.
    for leftover in (*leftovers(target), *leftovers(target.parent)):
        log.warning(
            "%s was left by a writer that died (%.0f MB); remove it, unless one on another machine is at it",
            leftover,
            disk_bytes(leftover) / 1e6,
        )
    parent = _nearest(target)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise AddressError(f"cannot write to {parent}; choose another --output-dir")
    require_free(parent, needed, REMEDY)


def require_room(needed: Mapping[Path, int]) -> None:
    """Refuse directories that together do not fit on a disk: the bytes by the directory.

    Raises:
        StorageError: With needed and available bytes.
    """
    sums: dict[int, tuple[Path, int]] = {}
    for directory, size in needed.items():
        parent = _nearest(directory.resolve())
        with disk_errors(parent):
            device = parent.stat().st_dev
        sums[device] = parent, size + (sums[device][1] if device in sums else 0)
    for parent, size in sums.values():
        require_free(parent, size, REMEDY)


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """Fill the directory that is yielded; it appears as `directory` when the block ends without an error.

    Missing parents are made. Inside the block, errors of the disk become `StorageError`.

    Raises:
        StorageError: If something is there already, or the disk is full or refuses; nothing is left behind.
    """
    with new_directories([directory]) as (place,):
        yield place


@contextmanager
def new_directories(directories: Sequence[Path]) -> Iterator[list[Path]]:
    """Fill the directories that are yielded; when the block ends without an error all appear, or none does.

    Several in a common parent that is absent or empty appear with it, by one rename. Elsewhere each is renamed, and
    those before one that is refused are taken back: there a writer that is killed meanwhile leaves the first of them.

    Raises:
        StorageError: If something is at one of them already, or the disk is full or refuses; nothing is left behind.
    """
    targets = [directory.resolve() for directory in directories]
    parent = _common_vacant_parent(targets)
    appearing = targets if parent is None else [parent]
    for target in targets:
        _require_nothing_at(target)
    temporaries = [temporary_name(target) for target in appearing]
    places = temporaries if parent is None else [temporaries[0] / target.name for target in targets]
    try:
        with disk_errors(targets[0], REMEDY):
            for place in places:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.mkdir()
            yield places
            for temporary in temporaries:
                _make_whole(temporary)
        _rename_all(temporaries, appearing)
    except SafetensorError as error:
        raise StorageError(f"cannot write {targets[0]}: {error}; {REMEDY}") from error
    finally:
        for temporary in temporaries:
            shutil.rmtree(temporary, ignore_errors=True)


def _common_vacant_parent(targets: Sequence[Path]) -> Path | None:
    """Return the parent that several directories appear with; None where each appears on its own."""
    parent = targets[0].parent
    if len(targets) == 1 or any(target.parent != parent for target in targets):
        return None
    if not parent.exists():
        return parent
    with disk_errors(parent):
        # Where a disk is mounted no directory can take its place, and one that may not be written beside stays, too.
        replaceable = parent.is_dir() and not parent.is_mount() and os.access(parent.parent, os.W_OK | os.X_OK)
        return parent if replaceable and not any(parent.iterdir()) else None


def _make_whole(temporary: Path) -> None:
    mode = temporary.stat().st_mode
    for path in (*temporary.rglob("*"), temporary):
        # Some writers let only their owner read a file, others follow the umask, as this directory does.
        path.chmod(mode if path.is_dir() else mode & 0o666)
        _make_durable(path)


def _rename_all(temporaries: Sequence[Path], targets: Sequence[Path]) -> None:
    """Give all directories their names, or none; an empty directory is replaced, one that was filled refuses."""
    if len(targets) > 1:
        for target in targets:
            _require_nothing_at(target)
    renamed: list[tuple[Path, Path]] = []
    try:
        for temporary, target in zip(temporaries, targets, strict=True):
            with disk_errors(target, REMEDY):
                temporary.rename(target)
                renamed.append((temporary, target))
                _make_durable(target.parent)
    except BaseException:
        for temporary, target in renamed:
            target.rename(temporary)
        raise


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


def _require_nothing_at(target: Path, error: type[StorageError] = StorageError) -> None:
    """Refuse a place that is taken: a wrong address before the work, bad luck where that shows only after it."""
    with disk_errors(target):
        occupied = any(target.iterdir()) if target.is_dir() else target.exists()
    if occupied:
        raise error(f"{target} exists already; choose another --output-dir or remove it first")


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _nearest(target: Path) -> Path:
    """Return the nearest parent that exists."""
    return next(parent for parent in target.parents if parent.exists())
