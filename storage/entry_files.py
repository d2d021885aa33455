"""The files of one entry of the cache, and how far an entry is that is being written.

Responsible for parts, their checksums, and for taking over what another process left in the middle of it. May assume a
directory that nobody else writes to.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

from storage.errors import StoredValueError
from storage.files import checksum, disk_errors, file_checksum, write_file
from storage.typed_json import decode_known, encode

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an entry holds, in words and numbers, and the checksum of each of its parts."""

    about: Mapping[str, object]
    checksums: Mapping[str, str]

    def encode(self) -> bytes:
        """Encode it as JSON, with a checksum of its own."""
        return json.dumps({**encode(self), "checksum": self._checksum()}, indent=1).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Manifest":
        """Decode what `encode` wrote.

        Raises:
            ValueError: If the bytes are not those of a manifest.
        """
        values = json.loads(data)
        try:
            manifest = decode_known(cls, values, "the manifest")
        except (AttributeError, StoredValueError) as error:
            raise ValueError("not a manifest") from error
        if values.get("checksum") != manifest._checksum():
            raise ValueError("its checksum is not its own")
        return manifest

    def _checksum(self) -> str:
        return checksum(json.dumps(encode(self)).encode())


class EntryWriter:
    """Collects the parts of one entry in a temporary directory; `TensorCache.new_entry` publishes it.

    Attributes:
        progress: What whoever began the entry recorded of how far it was; empty where nobody did.
    """

    def __init__(self, directory: Path) -> None:
        self.progress: Mapping[str, object] = {}
        self._directory = directory
        self._parts: dict[str, str] = {}

    def write(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Add a part.

        Raises:
            StorageError: If the disk is full or refuses.
        """
        data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
        self._parts[part] = checksum(data)
        write_file(self._directory / f"{part}.safetensors", data)

    def read(self, part: str) -> dict[str, Tensor]:
        """Read back a part, on the CPU.

        Raises:
            StorageError: If it is gone, as where another process took over.
        """
        path = self._directory / f"{part}.safetensors"
        with disk_errors(path):
            return safetensors.torch.load(path.read_bytes())

    def record(self, progress: Mapping[str, object], without: Sequence[str] = ()) -> None:
        """Note how far the entry is: from here on it can be gone on with, whatever happens to this process.

        Parts in `without` were needed on the way only, and are removed.

        Raises:
            StorageError: If the disk is full or refuses.
        """
        self.progress = dict(progress)
        self._parts = {part: check for part, check in self._parts.items() if part not in without}
        manifest = Manifest(about=self.progress, checksums=self._parts)
        write_file(self._directory / UNFINISHED, manifest.encode())
        with disk_errors(self._directory):
            for part in without:
                (self._directory / f"{part}.safetensors").unlink()

    def resume(self) -> bool:
        """Take over what the directory has of an entry, as it was when it was recorded; says whether it is whole."""
        try:
            manifest = Manifest.decode((self._directory / UNFINISHED).read_bytes())
            files = {f"{part}.safetensors": check for part, check in manifest.checksums.items()}
            if any(file_checksum(self._directory / name) != check for name, check in files.items()):
                return False
            for path in self._directory.iterdir():
                if path.name not in {*files, UNFINISHED}:
                    path.unlink()
        except (OSError, ValueError):
            return False
        self.progress, self._parts = manifest.about, dict(manifest.checksums)
        return True

    def finish(self, about: Mapping[str, object]) -> None:
        """Write the manifest: from here on the directory is a whole entry."""
        manifest = Manifest(about=dict(about), checksums=self._parts)
        write_file(self._directory / MANIFEST, manifest.encode())
        with disk_errors(self._directory):
            (self._directory / UNFINISHED).unlink(missing_ok=True)
