"""Every path of the project, in one class.

Responsible for where things lie below one home directory. May assume that the directory belongs to its user; several
processes and machines may share it.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from storage.errors import AddressError, StorageError

HOME_VARIABLE = "PRAQTUNE_HOME"
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Paths:
    """Directories below `home`; nothing is created until it is needed."""

    home: Path

    @classmethod
    def default(cls) -> "Paths":
        """Return `$PRAQTUNE_HOME`, or `praqtune` in the user's cache directory."""
        named = os.environ.get(HOME_VARIABLE)
        if named:
            return cls(Path(named))
        return cls(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "praqtune")

    @property
    def calibration(self) -> Path:
        """Return the directory of calibration entries: one directory each, named by its key."""
        return self.home / "calibration"

    @property
    def leases(self) -> Path:
        """Return the directory of leases: one small file per computation under way."""
        return self.home / "leases"

    @property
    def results(self) -> Path:
        """Return the directory of measured results: one file each, named by its key."""
        return self.home / "results"

    @property
    def artifacts(self) -> Path:
        """Return the directory of what the dashboard shows: one file per picture or table, named by its id."""
        return self.home / "artifacts"

    @property
    def offload(self) -> Path:
        """Return the directory of what is written of weights that are not in memory: files without names."""
        return self.home / "offload"

    @property
    def studies(self) -> Path:
        """Return the default study storage."""
        return self.home / "studies.db"

    def require_private(self) -> None:
        """Refuse a home that others may write to: what they put there would be taken for measurements.

        Raises:
            AddressError: Naming the directory and its mode.
        """
        for directory in (self.home, self.calibration, self.leases, self.results):
            mode = directory.stat().st_mode if directory.exists() else 0
            if mode & OTHERS_WRITE:
                raise AddressError(
                    f"others may write to {directory} (mode {stat.S_IMODE(mode):o}), so its contents cannot be "
                    f"trusted; `chmod go-w` it, choose another --cache, or allow it with --allow-shared-cache"
                )

    @staticmethod
    def create(directory: Path) -> Path:
        """Make `directory` and its parents.

        Raises:
            StorageError: If it cannot be made or written to.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot write to {directory}: {error.strerror}; choose another place with --cache or {HOME_VARIABLE}"
            ) from error
        if not os.access(directory, os.W_OK | os.X_OK):
            raise StorageError(f"cannot write to {directory}; choose another place with --cache or {HOME_VARIABLE}")
        return directory
