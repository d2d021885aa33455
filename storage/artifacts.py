"""Files that optuna-dashboard shows beside a study or a trial.

Responsible for one file per artifact, whole or not at all, and for its entry in the study. One name has one file: what
is attached again replaces what was there. May assume a single writer per study; readers may come at any time.
"""

import io
import json
import mimetypes
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage

from storage.files import write_file
from storage.paths import Paths

OF_STUDY = "artifacts:"
# Optuna's own entry of a trial's artifact lies in the trial, and a finished trial takes no more entries. The dashboard
# reads these as well (`optuna_dashboard/artifact/_backend.py`, `list_trial_artifacts`).
OF_TRIAL = "dashboard:artifacts:{trial}:"
UNKNOWN_KIND = "application/octet-stream"


class ArtifactFiles:
    """An artifact store as Optuna and its dashboard ask for one; nothing is created until something is written."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Return the file of that id.

        Raises:
            ArtifactNotFound: If there is none.
        """
        try:
            return self._path(artifact_id).open("rb")
        except FileNotFoundError as error:
            raise ArtifactNotFound(f"there is no artifact {artifact_id}") from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Keep a file, replacing an earlier one of the same id."""
        path = self._path(artifact_id)
        Paths.create(self._directory)
        write_file(path, content_body.read())

    def remove(self, artifact_id: str) -> None:
        """Delete a file.

        Raises:
            ArtifactNotFound: If there is none.
        """
        try:
            self._path(artifact_id).unlink()
        except FileNotFoundError as error:
            raise ArtifactNotFound(f"there is no artifact {artifact_id}") from error

    def __contains__(self, artifact_id: str) -> bool:
        return self._path(artifact_id).is_file()

    def _path(self, artifact_id: str) -> Path:
        # Ids come from the address bar: nothing but an id may name a file.
        return self._directory / str(uuid.UUID(artifact_id))


def attached(attributes: Mapping[str, Any], trial_id: int | None) -> dict[str, str]:
    """Return the ids of what is attached to a study, or to one of its trials, by file name.

    Args:
        attributes: The study's system attributes.
        trial_id: Optuna's id of the trial; None for the study itself.
    """
    prefix = _prefix(trial_id)
    entries = [json.loads(value) for key, value in attributes.items() if key.startswith(prefix)]
    return {entry["filename"]: entry["artifact_id"] for entry in entries if entry is not None}


def attach(
    storage: BaseStorage, study_id: int, trial_id: int | None, files: ArtifactFiles, name: str, data: bytes
) -> str:
    """Show `data` as the file `name` beside a study or one of its trials; returns the artifact's id.

    Raises:
        StorageError: If the disk is full or refuses.
    """
    existing_id = attached(storage.get_study_system_attrs(study_id), trial_id).get(name)
    artifact_id = existing_id or str(uuid.uuid4())
    # The file first: an entry without one would be a broken picture.
    files.write(artifact_id, io.BytesIO(data))
    if existing_id is None:
        kind, encoding = mimetypes.guess_type(name)
        entry = {
            "artifact_id": artifact_id,
            "filename": name,
            "mimetype": kind or UNKNOWN_KIND,
            "encoding": encoding,
        }
        storage.set_study_system_attr(study_id, f"{_prefix(trial_id)}{artifact_id}", json.dumps(entry))
    return artifact_id


def _prefix(trial_id: int | None) -> str:
    return OF_STUDY if trial_id is None else OF_TRIAL.format(trial=trial_id)
