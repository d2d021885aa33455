"""An archive is read as hostile: whatever it holds, a study is imported or one line says why not, and nothing stays."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hpo.study.archive
from hpo.study.archive import STUDY, import_study
from hpo.study.record import read_study
from objectives.errors import InputError
from storage.errors import StorageError
from storage.results import ResultStore

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "study-format-3.zip"


def parts() -> dict[str, bytes]:
    with zipfile.ZipFile(GOLDEN) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def golden() -> dict[str, bytes]:
    return parts()


def packed(entries: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return data.getvalue()


def imported(data: bytes, directory: Path, name: str | None = None) -> optuna.Study:
    """Import from a file; where that is refused, no study is left."""
    path = directory / "s.zip"
    path.write_bytes(data)
    storage = optuna.storages.InMemoryStorage()
    refused = True
    try:
        study = import_study(storage, ResultStore(directory / "results"), path, name)
        refused = False
    finally:
        assert not refused or optuna.get_all_study_names(storage) == []
    return study


def refusal(data: bytes, directory: Path, name: str | None = None) -> str:
    with pytest.raises((InputError, StorageError)) as caught:
        imported(data, directory, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(golden: dict[str, bytes], change: Callable[[Any], Any]) -> bytes:
    study = json.loads(golden[STUDY])
    change(study)
    return packed({**golden, STUDY: json.dumps(study).encode()})


def test_what_was_written_is_read(golden: dict[str, bytes], tmp_path: Path) -> None:
    """The archive of the tests below is a good one."""
    assert read_study(imported(packed(golden), tmp_path)).trials


@pytest.mark.parametrize("name", ["results/../../x.safetensors", "/x", "results/a/b.safetensors", "x.json", "../x"])
def test_an_entry_is_a_result_or_refused(name: str, golden: dict[str, bytes], tmp_path: Path) -> None:
    """No path of an archive leads anywhere."""
    assert "unexpected entry" in refusal(packed({**golden, name: b"x"}), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"s.zip", "results"}


def test_sizes_and_numbers_of_entries_are_limited(
    golden: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would fill the memory is refused by what the archive says of itself."""
    monkeypatch.setattr(hpo.study.archive, "MOST_BYTES", 10_000)
    assert "bytes, and at most 10000 are read" in refusal(packed(golden), tmp_path)
    monkeypatch.setattr(hpo.study.archive, "MOST_ENTRIES", 1)
    assert "entries, and at most 1 are read" in refusal(packed(golden), tmp_path)


def test_json_that_is_nested_deeply_is_refused(golden: dict[str, bytes], tmp_path: Path) -> None:
    """A hundred thousand brackets are no recursion of ours."""
    assert "nested too deeply" in refusal(packed({**golden, STUDY: b"[" * 100_000}), tmp_path)


@pytest.mark.parametrize("name", ["", " ", "x" * 101, "a\nb", "a\x1b[31mb"])
def test_names_that_nothing_can_hold_are_refused(name: str, golden: dict[str, bytes], tmp_path: Path) -> None:
    """Whether the archive or a person gives them."""
    assert "a study cannot be called" in refusal(changed(golden, lambda study: study.update(name=name)), tmp_path)
    assert "a study cannot be called" in refusal(packed(golden), tmp_path, name)


def test_a_result_that_a_trial_names_is_no_path(golden: dict[str, bytes], tmp_path: Path) -> None:
    """What a study says of its results leads to no other file."""
    with pytest.raises(StorageError, match="is no key of a result"):
        ResultStore(tmp_path).load("../../x")
    with pytest.raises(StorageError, match="is no key of a result"):
        "../../x" in ResultStore(tmp_path)  # noqa: B015


# Numbers that databases have not, texts that no encoding holds, and other types than those that stand there.
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**30, max_value=10**40),
    st.floats(),
    st.text(max_size=8),
    st.just("\ud83d"),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested lists and objects."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


PLACES = [place for place in places(json.loads(parts()[STUDY])) if place]


@given(place=st.sampled_from(PLACES), value=VALUES, removed=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_field_may_hold_anything(
    place: tuple[Any, ...], value: Any, removed: bool, golden: dict[str, bytes], tmp_path: Path
) -> None:
    """A field that is missing or of another type is imported as far as it is read, or refused in one line."""

    def change(study: Any) -> None:
        *parents, last = place
        for step in parents:
            study = study[step]
        if removed:
            del study[last]
        else:
            study[last] = value

    try:
        study = imported(changed(golden, change), tmp_path)
    except (InputError, StorageError):
        return
    assert read_study(study).contract


@given(position=st.floats(0, 1), data=st.binary(min_size=1, max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_may_be_others(position: float, data: bytes, golden: dict[str, bytes], tmp_path: Path) -> None:
    """A damaged archive is one line, wherever it is damaged."""
    whole = packed(golden)
    start = int(position * (len(whole) - 1))
    try:
        study = imported(whole[:start] + data + whole[start + len(data) :], tmp_path)
    except (InputError, StorageError):
        return
    assert read_study(study).contract
