"""Files beside a study or a trial: one per name, found again, whole or absent."""

import io
import json
from pathlib import Path

import optuna
import pytest
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import TrialState, create_trial
from optuna_dashboard.artifact._backend import get_study_artifact_meta, get_trial_artifact_meta

from storage.artifacts import ArtifactFiles, attach, attached
from storage.errors import StorageError


@pytest.fixture
def files(tmp_path: Path) -> ArtifactFiles:
    return ArtifactFiles(tmp_path / "artifacts")


@pytest.fixture
def study() -> optuna.Study:
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), study_name="s")
    study.add_trial(create_trial(state=TrialState.COMPLETE, value=1.0))
    return study


def attributes(study: optuna.Study) -> dict[str, object]:
    return study._storage.get_study_system_attrs(study._study_id)


def content(files: ArtifactFiles, artifact_id: str) -> bytes:
    with files.open_reader(artifact_id) as file:
        return file.read()


@pytest.mark.parametrize("of_trial", [False, True])
def test_what_is_attached_is_what_is_served(study: optuna.Study, files: ArtifactFiles, of_trial: bool) -> None:
    """By the dashboard's own look-up: also beside a trial that has ended, which takes no entries any more."""
    trial_id = study.get_trials()[0]._trial_id if of_trial else None
    artifact_id = attach(study._storage, study._study_id, trial_id, files, "layers.csv", b"a,b\n")
    if trial_id is None:
        meta = get_study_artifact_meta(study._storage, study._study_id, artifact_id)
    else:
        meta = get_trial_artifact_meta(study._storage, study._study_id, trial_id, artifact_id)
    assert meta == {"artifact_id": artifact_id, "filename": "layers.csv", "mimetype": "text/csv", "encoding": None}
    assert content(files, artifact_id) == b"a,b\n"
    assert attached(attributes(study), trial_id) == {"layers.csv": artifact_id}


def test_attaching_again_replaces_and_repeats_nothing(study: optuna.Study, files: ArtifactFiles) -> None:
    """One name, one entry, one file: after any number of resumed runs."""
    first = attach(study._storage, study._study_id, None, files, "report.html", b"old")
    for data in (b"new", b"newer"):
        assert attach(study._storage, study._study_id, None, files, "report.html", data) == first
    assert content(files, first) == b"newer"
    assert len(attached(attributes(study), None)) == 1


def test_what_was_deleted_in_the_dashboard_is_not_there(study: optuna.Study, files: ArtifactFiles) -> None:
    """The dashboard leaves an empty entry behind; the name is free again."""
    artifact_id = attach(study._storage, study._study_id, None, files, "report.html", b"x")
    files.remove(artifact_id)
    study._storage.set_study_system_attr(study._study_id, f"artifacts:{artifact_id}", json.dumps(None))
    assert attached(attributes(study), None) == {}
    assert artifact_id not in files
    with pytest.raises(ArtifactNotFound):
        files.open_reader(artifact_id)
    with pytest.raises(ArtifactNotFound):
        files.remove(artifact_id)


@pytest.mark.parametrize("name", ["../studies.db", "/etc/passwd", "x", ""])
def test_nothing_but_an_id_names_a_file(files: ArtifactFiles, name: str) -> None:
    """Ids come from the address bar."""
    with pytest.raises(ValueError, match="badly formed"):
        files.open_reader(name)


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """What is in the way, and what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write to .*choose another place"):
        ArtifactFiles(tmp_path / "file" / "artifacts").write("0" * 32, io.BytesIO(b"x"))
