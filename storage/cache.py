"""The content-addressed cache of tensors that many processes and machines share.

Responsible for entries that are whole or absent, checked when read, and computed by one process at a time. An entry
is a directory named by its key, with one safetensors file per part and a manifest of checksums; equal keys mean equal
contents, so that two processes that publish the same key are harmless. A computation is guarded by a lease.
Directories appear and disappear by renaming: nobody ever sees, or publishes, half of an entry, and who takes over may
go on from what was recorded of an unfinished one (`TensorCache.resumed_entry`).
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

from storage.entry_files import MANIFEST, EntryWriter, Manifest
from storage.errors import DamagedEntryError, LeaseLostError, StorageError
from storage.files import TEMPORARY, checksum, disk_errors, file_checksum, require_free, temporary_name
from storage.lease import Lease
from storage.paths import Paths


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What `cache ls` shows of one entry: its key, what it holds in words and numbers, and its size in bytes."""

    key: str
    about: Mapping[str, object]
    size: int


class TensorCache:
    """Entries below `paths.calibration`; any number of processes may use the same directory at the same time."""

    def __init__(self, paths: Paths) -> None:
        self._root = paths.calibration
        self._leases = paths.leases

    def __contains__(self, key: str) -> bool:
        return (self._root / key / MANIFEST).is_file()

    def read(self, key: str, part: str) -> dict[str, Tensor]:
        """Read one part of an entry, on the CPU.

        Raises:
            DamagedEntryError: If its bytes are not those that were written, naming the file.
        """
        with self._whole_part(key, part) as (path, check):
            data = path.read_bytes()
            check(checksum(data))
        return safetensors.torch.load(data)

    def window(self, key: str, part: str) -> dict[str, Tensor]:
        """Open one part of an entry without reading it into memory: tensors that are windows on the file.

        Raises:
            DamagedEntryError: If its bytes are not those that were written, naming the file.
        """
        with self._whole_part(key, part) as (path, check):
            check(file_checksum(path))
        return safetensors.torch.load_file(path)

    @contextmanager
    def new_entry(self, key: str, about: Mapping[str, object]) -> Iterator[EntryWriter]:
        """Write an entry; it appears under its key when the block ends without an error, and not at all otherwise.

        Raises:
            LeaseLostError: If another process took over and cleared this one's work.
            StorageError: If the disk is full or refuses.
        """
        temporary = temporary_name(Paths.create(self._root) / key)
        with disk_errors(temporary):
            temporary.mkdir()
        with self._published(EntryWriter(temporary), temporary, key, about) as writer:
            yield writer

    @contextmanager
    def resumed_entry(self, key: str, about: Mapping[str, object]) -> Iterator[EntryWriter]:
        """As `new_entry`, from where a process that died was when it recorded its progress.

        What was recorded outlives an interrupt, too. Call only while holding the lease that guards the key.

        Raises:
            LeaseLostError: If another process took over.
            StorageError: If the disk is full or refuses.
        """
        writer, temporary = self._taken_over(key)
        with self._published(writer, temporary, key, about):
            yield writer

    @contextmanager
    def passing_entry(self, key: str) -> Iterator[EntryWriter]:
        """As `resumed_entry`, of an entry that nobody else is to read: it goes when the block ends.

        What was recorded outlives an interrupt and the death of the process. Call only while holding the lease that
        guards the key.

        Raises:
            StorageError: If the disk is full or refuses, or another process took over.
        """
        writer, temporary = self._taken_over(key)
        with _left_by_interrupts(writer, temporary):
            yield writer

    def lease(self, name: str, waiting: Callable[[str], None]) -> AbstractContextManager[None]:
        """Be the only process that computes under `name`; `waiting` is told now and then while another is.

        What an owner that lost its lease then publishes is as good, and what it has not published is lost
        (`LeaseLostError`).
        """
        return Lease(self._leases, name).held(waiting)

    def lease_if_free(self, name: str, seconds: float) -> AbstractContextManager[bool]:
        """Be the only process that computes under `name`, unless another is for so long; says whether it is so."""
        return Lease(self._leases, name).if_free(seconds)

    def is_unfinished(self, key: str) -> bool:
        """Whether something is left of `key` that may be gone on with."""
        return any(self._root.glob(f"{TEMPORARY}{key}-*"))

    def clear_abandoned(self, prefix: str, seconds: float) -> None:
        """Remove what is left of unfinished entries whose keys begin so, and that nobody has touched for so long."""
        for leftover in self._root.glob(f"{TEMPORARY}{prefix}*"):
            # What another process has just removed, or only its owner may remove, is in nobody's way.
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > seconds:
                    self._delete(leftover, prefix)

    def clear_unfinished(self, key: str, kept: Path | None = None) -> None:
        """Remove what a dead process left of `key`, but `kept`; call only while holding the lease that guards it."""
        for leftover in self._root.glob(f"{TEMPORARY}{key}-*"):
            # What another process has just removed, or only its owner may remove, is in nobody's way.
            with suppress(OSError):
                if leftover != kept:
                    self._delete(leftover, key)

    def require_free(self, needed: int) -> None:
        """Refuse to start what will not fit on the disk (`needed` bytes)."""
        require_free(Paths.create(self._root), needed)

    def entries(self) -> list[Entry]:
        """Return all whole entries, by key."""
        return [entry for key in self._keys() if (entry := self._entry(key))]

    def verify(self, key: str) -> list[str]:
        """Read every part of an entry; returns one line per damaged file, none when the entry is whole."""
        problems = []
        try:
            parts = self._manifest(key).checksums
        except DamagedEntryError as error:
            return [str(error)]
        for part in parts:
            try:
                self.read(key, part)
            except DamagedEntryError as error:
                problems.append(str(error))
        return problems

    def remove(self, key: str, *, missing_ok: bool = False) -> None:
        """Delete an entry.

        Raises:
            StorageError: If there is no such entry (unless `missing_ok`) or it cannot be deleted.
        """
        # Keys are typed by people: only what `entries` lists is deleted, never `..`.
        if key in self._keys():
            with disk_errors(self._root / key), suppress(FileNotFoundError):
                self._delete(self._root / key, key)
        elif not missing_ok:
            raise StorageError(f"there is no entry {key} in {self._root}; `cache ls` lists them")

    def _taken_over(self, key: str) -> tuple[EntryWriter, Path]:
        """Begin an entry, with what a process that died recorded of it; returns the directory, too."""
        temporary = temporary_name(Paths.create(self._root) / key)
        writer = EntryWriter(temporary)
        for leftover in self._root.glob(f"{TEMPORARY}{key}-*"):
            # What another process has just removed, or only its owner may remove, cannot be gone on with.
            with suppress(OSError):
                leftover.rename(temporary)
                if writer.resume():
                    break
                self._delete(temporary, key)
        self.clear_unfinished(key, temporary)
        with disk_errors(temporary):
            temporary.mkdir(exist_ok=True)
        return writer, temporary

    @contextmanager
    def _whole_part(self, key: str, part: str) -> Iterator[tuple[Path, Callable[[str], None]]]:
        """Give the path of a part, and what refuses it by its checksum; a file that cannot be read is damaged."""
        path = self._root / key / f"{part}.safetensors"
        expected = self._manifest(key).checksums.get(part)

        def check(actual: str) -> None:
            if actual != expected:
                raise DamagedEntryError(key, f"{path} is damaged: its checksum is not the one in its manifest")

        try:
            yield path, check
        except OSError as error:
            raise DamagedEntryError(key, f"{path} cannot be read: {error.strerror}") from error

    @contextmanager
    def _published(
        self, writer: EntryWriter, temporary: Path, key: str, about: Mapping[str, object]
    ) -> Iterator[EntryWriter]:
        """Publish what is written inside the block; after an interrupt what was recorded of it is left."""
        with _left_by_interrupts(writer, temporary):
            try:
                yield writer
                writer.finish(about)
                self._publish(temporary, key)
            except StorageError as error:
                if temporary.is_dir():
                    raise
                raise LeaseLostError(f"{temporary} was cleared by a process that took over its computation") from error

    def _publish(self, temporary: Path, key: str) -> None:
        published = self._root / key
        with disk_errors(published):
            try:
                temporary.rename(published)
            except OSError:
                if key in self:
                    return
                # What lies there without a manifest is no entry.
                self._delete(published, key)
                temporary.rename(published)

    def _delete(self, directory: Path, key: str) -> None:
        """Delete a directory that other processes may be reading or writing: for them it is gone at once."""
        aside = temporary_name(self._root / key)
        directory.rename(aside)
        shutil.rmtree(aside)

    def _keys(self) -> list[str]:
        names = (path.parent.name for path in self._root.glob(f"*/{MANIFEST}"))
        return sorted(name for name in names if not name.startswith(TEMPORARY))

    def _entry(self, key: str) -> Entry | None:
        """Describe an entry; None if another process has just removed it."""
        try:
            size = sum(file.stat().st_size for file in (self._root / key).iterdir())
        except FileNotFoundError:
            return None
        try:
            about: Mapping[str, object] = self._manifest(key).about
        except DamagedEntryError as error:
            about = {"damaged": str(error)}
        return Entry(key=key, about=about, size=size)

    def _manifest(self, key: str) -> Manifest:
        path = self._root / key / MANIFEST
        try:
            return Manifest.decode(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DamagedEntryError(key, f"{path} is damaged or missing") from error


@contextmanager
def _left_by_interrupts(writer: EntryWriter, temporary: Path) -> Iterator[None]:
    """Remove a temporary directory at the end; after an interrupt what was recorded of it is left."""
    keep = False
    try:
        yield
    except KeyboardInterrupt:
        keep = bool(writer.progress)
        raise
    finally:
        if not keep:
            shutil.rmtree(temporary, ignore_errors=True)
