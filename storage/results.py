"""Measured results: a JSON record and its tensors in one safetensors file each.

Responsible for keeping what a trial measured before anyone is told about it. One writer per key; a file appears
whole or not at all, and equal keys mean equal measurements, so a second writer is harmless.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from storage.errors import DamagedEntryError
from storage.files import checksum, disk_errors, write_file
from storage.lease import POLL_SECONDS, Lease
from storage.paths import Paths

KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class ResultStore:
    """Results below one directory, by key; leases lie beside it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def lease(self, key: str) -> Lease:
        """Return the lease of whoever measures `key`."""
        return Lease(self._directory.parent / "leases", key)

    def once(self, key: str, compute: Callable[[], None], waiting: Callable[[], None]) -> None:
        """Have `key` in the store: `compute` saves it here, or another process that is at it already does.

        `waiting` is called now and then while another one is.
        """
        lease = self.lease(key)
        while key not in self:
            with lease.if_free() as free:
                if free and key not in self:
                    compute()
            if not free:
                waiting()
                time.sleep(POLL_SECONDS)

    def save(self, key: str, record: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
        """Keep a JSON-able record and its tensors, replacing an earlier result of the same key."""
        Paths.create(self._directory)
        packed = {name: tensor.contiguous() for name, tensor in tensors.items()}
        text = json.dumps(record)
        metadata = {"record": text, "checksum": _checksum(text, packed)}
        write_file(self._path(key), safetensors.torch.save(packed, metadata=metadata))

    def remove(self, key: str) -> None:
        """Forget a result, so that it is measured again."""
        with disk_errors(self._path(key)):
            self._path(key).unlink(missing_ok=True)

    def load(self, key: str) -> tuple[dict[str, object], dict[str, Tensor]]:
        """Load what `save` was given.

        Raises:
            DamagedEntryError: If the file is missing, or its bytes are not those that were written.
        """
        path = self._path(key)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["checksum"] != _checksum(metadata["record"], tensors):
                raise ValueError("its checksum is not the one it was written with")
            return json.loads(metadata["record"]), tensors
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise DamagedEntryError(
                key, f"{path} is damaged or missing ({error}); delete it to measure again"
            ) from error

    def encoded(self, key: str) -> bytes:
        """Return a result as one piece, to be moved elsewhere.

        Raises:
            DamagedEntryError: If the file is missing, or its bytes are not those that were written.
        """
        self.load(key)
        return self._path(key).read_bytes()

    def adopt(self, key: str, encoded: bytes) -> None:
        """Keep what `encoded` gave elsewhere; what is there already stays.

        Raises:
            DamagedEntryError: If the bytes are not those of a result.
        """
        if key not in self:
            Paths.create(self._directory)
            write_file(self._path(key), encoded)
            try:
                self.load(key)
            except DamagedEntryError:
                self.remove(key)
                raise

    def _path(self, key: str) -> Path:
        # Keys come from studies, and studies from elsewhere: nothing but a key may name a file.
        if not KEY.fullmatch(key):
            raise DamagedEntryError(key, f"{key[:100]!r} is no key of a result; the study that names it is damaged")
        return self._directory / f"{key}.safetensors"


def _checksum(record: str, tensors: Mapping[str, Tensor]) -> str:
    return checksum(record.encode() + safetensors.torch.save(dict(tensors)))
