"""Results come back exactly as they were saved, or are refused as damaged."""

import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import DamagedEntryError, StorageError
from storage.results import ResultStore
from tests.storage.generated import same, tensor_dicts

RECORD = {"outcome": "complete", "perplexity": 12.5, "layers": [{"name": "a.b", "alpha": 0.25}], "note": None}
TENSORS = {"nll": torch.linspace(0, 9, 10, dtype=torch.float64), "tokens": torch.arange(10)}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(record=st.dictionaries(st.text(), JSON, max_size=4), tensors=tensor_dicts())
def test_load_gives_what_save_was_given(
    record: dict[str, object], tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any JSON-able record and any tensors survive bit by bit."""
    store = ResultStore(tmp_path_factory.mktemp("results", numbered=True) / "made" / "when-needed")
    assert "key" not in store
    store.save("key", record, tensors)
    assert "key" in store
    loaded, read = store.load("key")
    assert loaded == record
    assert same(read, tensors)


def test_saving_again_replaces_the_result(tmp_path: Path) -> None:
    """The last measurement of a key is kept, and no other file."""
    store = ResultStore(tmp_path)
    store.save("key", {"first": 1}, TENSORS)
    store.save("key", {"second": 2}, {})
    assert store.load("key") == ({"second": 2}, {})
    assert len(os.listdir(tmp_path)) == 1


def test_every_damaged_byte_is_detected_and_the_file_named(tmp_path: Path) -> None:
    """One changed byte anywhere, in numbers, names or record, is never read as a result."""
    store = ResultStore(tmp_path)
    store.save("key", RECORD, TENSORS)
    [path] = tmp_path.iterdir()
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x01]) + data[place + 1 :])
        with pytest.raises(DamagedEntryError, match=path.name) as caught:
            store.load("key")
        assert caught.value.key == "key"
    path.write_bytes(data)
    assert store.load("key")[0] == RECORD


def test_a_truncated_or_missing_result_is_detected(tmp_path: Path) -> None:
    """Every truncation, nothing at all, and a file of another kind are one line with the remedy."""
    store = ResultStore(tmp_path)
    store.save("key", RECORD, TENSORS)
    [path] = tmp_path.iterdir()
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedEntryError, match="delete it to measure again"):
            store.load("key")
    path.unlink()
    assert "key" not in store
    with pytest.raises(DamagedEntryError, match="is damaged or missing"):
        store.load("key")


def test_a_full_disk_keeps_the_earlier_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that cannot be written replaces nothing and leaves nothing."""
    store = ResultStore(tmp_path)
    store.save("key", {"first": 1}, TENSORS)

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match="No space left on device; free space"):
        store.save("key", {"second": 2}, TENSORS)
    assert len(os.listdir(tmp_path)) == 1
    assert store.load("key")[0] == {"first": 1}


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """Results below a regular file are refused in one line."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot write to .*; choose another place"):
        ResultStore(tmp_path / "file" / "results").save("key", {}, {})
