"""The content-addressed cache of tensors that many processes and machines share.

Responsible for entries that are whole or absent, checked when read, and computed by one process at a time. An entry
is a directory named by its key, with one safetensors file per part and a manifest of checksums. May assume nothing
about keys except that equal keys mean equal contents; two processes that publish the same key are therefore harmless.

Ownership: a computation is guarded by a lease that its owner keeps refreshing (`filelock.SoftFileLease`: exclusive
creation and modification times only, so it also works on network file systems without locks). Waiting processes take
over at once when the owner died on their machine, and after `LEASE_SECONDS` without a refresh from another machine.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from filelock import SoftFileLease, Timeout
from torch import Tensor

from storage.errors import DamagedEntryError, LeaseLostError, StorageError
from storage.files import TEMPORARY, checksum, disk_errors, require_free, temporary_name, write_file
from storage.paths import Paths

LEASE_SECONDS = 30.0
POLL_SECONDS = 0.5
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What `cache ls` shows of one entry: its key, what it holds in words and numbers, and its size in bytes."""

    key: str
    about: dict[str, object]
    size: int


class EntryWriter:
    """Collects the parts of one entry in a temporary directory; `TensorCache.new_entry` publishes it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._parts: dict[str, str] = {}

    def write(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Add a part.

        Raises:
            LeaseLostError: If another process took over and cleared this one's work.
            StorageError: If the disk is full or refuses.
        """
        data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
        self._parts[part] = checksum(data)
        self._require_directory()
        write_file(self._directory / f"{part}.safetensors", data)

    def finish(self, about: Mapping[str, object]) -> None:
        """Write the manifest: from here on the directory is a whole entry."""
        self._require_directory()
        manifest = {"about": dict(about), "checksums": self._parts}
        write_file(self._directory / MANIFEST, json.dumps(manifest, indent=1).encode())

    def _require_directory(self) -> None:
        if not self._directory.is_dir():
            raise LeaseLostError(f"{self._directory} was cleared by a process that took over its computation")


class TensorCache:
    """Entries below `paths.calibration`; any number of processes may use the same directory at the same time."""

    def __init__(self, paths: Paths) -> None:
        self._root = paths.calibration
        self._leases = paths.leases

    def __contains__(self, key: str) -> bool:
        return (self._root / key / MANIFEST).is_file()

    def read(self, key: str, part: str) -> dict[str, Tensor]:
        """One part of an entry, on the CPU.

        Raises:
            DamagedEntryError: If its bytes are not those that were written, naming the file.
        """
        path = self._root / key / f"{part}.safetensors"
        expected = self._manifest(key)["checksums"].get(part)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DamagedEntryError(key, f"{path} cannot be read: {error.strerror}") from error
        if checksum(data) != expected:
            raise DamagedEntryError(key, f"{path} is damaged: its checksum is not the one in its manifest")
        return safetensors.torch.load(data)

    @contextmanager
    def new_entry(self, key: str, about: Mapping[str, object]) -> Iterator[EntryWriter]:
        """Write an entry; it appears under its key when the block ends without an error, and not at all otherwise."""
        temporary = temporary_name(Paths.create(self._root) / key)
        with disk_errors(temporary):
            temporary.mkdir()
        try:
            writer = EntryWriter(temporary)
            yield writer
            writer.finish(about)
            self._publish(temporary, key)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def lease(self, name: str, waiting: Callable[[str], None]) -> Iterator[None]:
        """Be the only process that computes under `name`; `waiting` is told once when another one is at it.

        Whatever a dead owner left half written under that name's keys is cleared.
        """
        path = Paths.create(self._leases) / f"{name}.lease"
        lease = SoftFileLease(path, lease_duration=LEASE_SECONDS, poll_interval=POLL_SECONDS)
        try:
            lease.acquire(timeout=POLL_SECONDS)
        except Timeout:
            waiting(f"another process is computing this; waiting for it (its lease is {path})")
            lease.acquire()
        try:
            yield
        finally:
            lease.release()

    def clear_unfinished(self, key: str) -> None:
        """Remove what a dead process left of `key`; call only while holding the lease that guards it."""
        for leftover in self._root.glob(f"{TEMPORARY}{key}-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def require_free(self, needed: int) -> None:
        """Refuse to start what will not fit on the disk (`needed` bytes)."""
        require_free(Paths.create(self._root), needed)

    def entries(self) -> list[Entry]:
        """All whole entries, by key."""
        if not self._root.is_dir():
            return []
        keys = sorted(path.parent.name for path in self._root.glob(f"*/{MANIFEST}"))
        return [self._entry(key) for key in keys if not key.startswith(TEMPORARY)]

    def verify(self, key: str) -> list[str]:
        """Read every part of an entry; returns one line per damaged file, none when the entry is whole."""
        problems = []
        try:
            parts = self._manifest(key)["checksums"]
        except DamagedEntryError as error:
            return [str(error)]
        for part in parts:
            try:
                self.read(key, part)
            except DamagedEntryError as error:
                problems.append(str(error))
        return problems

    def remove(self, key: str) -> None:
        """Delete an entry.

        Raises:
            StorageError: If there is no such entry or it cannot be deleted.
        """
        path = self._root / key
        if not path.is_dir() or path.parent != self._root:
            raise StorageError(f"there is no entry {key} in {self._root}; `cache ls` lists them")
        # The manifest goes first, so that a reader never sees an entry that is listed but half deleted.
        with disk_errors(path):
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path)

    def _publish(self, temporary: Path, key: str) -> None:
        if key in self:
            return
        # What lies there without a manifest is the rest of a deletion.
        shutil.rmtree(self._root / key, ignore_errors=True)
        with disk_errors(self._root / key):
            try:
                temporary.rename(self._root / key)
            except OSError:
                if key not in self:
                    raise

    def _entry(self, key: str) -> Entry:
        directory = self._root / key
        size = sum(file.stat().st_size for file in directory.iterdir())
        try:
            about = self._manifest(key)["about"]
        except DamagedEntryError as error:
            about = {"damaged": str(error)}
        return Entry(key=key, about=about, size=size)

    def _manifest(self, key: str) -> dict[str, dict[str, object]]:
        path = self._root / key / MANIFEST
        try:
            manifest = json.loads(path.read_bytes())
            return {"about": dict(manifest["about"]), "checksums": dict(manifest["checksums"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedEntryError(key, f"{path} is damaged or missing") from error
