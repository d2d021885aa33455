"""Entries are whole or absent, come back exactly as written, and damage is detected and named."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.cache import TensorCache
from storage.entry_files import EntryWriter, Manifest
from storage.errors import DamagedEntryError, LeaseLostError, StorageError
from storage.files import TEMPORARY
from storage.paths import Paths
from tests.processes import CONTEXT, finish, start
from tests.storage import workers
from tests.storage.generated import same, tensor_dicts

KEY = "0a1b2c"
PARTS = {
    "block-000": {"gram": torch.arange(6.0), "tokens": torch.tensor(3)},
    "block-001": {"gram": torch.ones(3, 2, dtype=torch.bfloat16)},
}
ABOUT = {"model": "some/model", "samples": [0, 16], "loss": 0.1}


@pytest.fixture
def cache(tmp_path: Path) -> TensorCache:
    """An empty cache whose directory does not exist yet."""
    return TensorCache(Paths(tmp_path))


@pytest.fixture
def entry(cache: TensorCache, tmp_path: Path) -> Path:
    """The directory of one whole entry of `cache`."""
    publish(cache, KEY)
    return tmp_path / "calibration" / KEY


def publish(cache: TensorCache, key: str, meanwhile: Callable[[str], object] = lambda _: None) -> None:
    """Write an entry; `meanwhile` is called with the name of every part once it is written."""
    with cache.new_entry(key, ABOUT) as writer:
        for part, tensors in PARTS.items():
            writer.write(part, tensors)
            meanwhile(part)


def fail(error: BaseException, *_: object) -> None:
    raise error


def directories(tmp_path: Path) -> list[str]:
    """Everything that lies in the cache, whether listed or not."""
    return sorted(os.listdir(tmp_path / "calibration"))


def assert_whole(cache: TensorCache, key: str) -> None:
    assert cache.verify(key) == []
    assert all(same(cache.read(key, part), tensors) for part, tensors in PARTS.items())


@settings(deadline=None, derandomize=True, max_examples=60)
@given(parts=st.dictionaries(st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True), tensor_dicts(), max_size=3))
def test_read_gives_exactly_what_was_written(
    parts: dict[str, dict[str, torch.Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Tensors of any type and shape survive bit by bit, part by part."""
    cache = TensorCache(Paths(tmp_path_factory.mktemp("cache", numbered=True)))
    with cache.new_entry(KEY, {}) as writer:
        for part, tensors in parts.items():
            writer.write(part, tensors)
    assert KEY in cache
    assert cache.verify(KEY) == []
    for part, tensors in parts.items():
        assert same(cache.read(KEY, part), tensors)


@settings(deadline=None, derandomize=True)
@given(
    about=st.dictionaries(st.text(), st.text() | st.integers() | st.floats(allow_nan=False) | st.lists(st.integers())),
    checksums=st.dictionaries(st.text(), st.text()),
)
def test_a_manifest_survives_encoding(about: dict[str, object], checksums: dict[str, str]) -> None:
    """Decoding is the inverse of encoding, whatever words an entry is described with."""
    manifest = Manifest(about=about, checksums=checksums)
    assert Manifest.decode(manifest.encode()) == manifest


def test_an_empty_cache_holds_nothing_and_creates_nothing(cache: TensorCache, tmp_path: Path) -> None:
    """Looking is not writing."""
    assert KEY not in cache
    assert cache.entries() == []
    cache.clear_unfinished(KEY)
    assert os.listdir(tmp_path) == []


def test_entries_are_listed_by_key_with_their_size(cache: TensorCache, entry: Path) -> None:
    """A listing says what an entry is about and what it takes on the disk."""
    publish(cache, "000")
    first, second = cache.entries()
    assert (first.key, second.key) == ("000", KEY)
    assert second.about == ABOUT
    assert second.size == sum(file.stat().st_size for file in entry.iterdir()) > 0


def test_an_unfinished_entry_is_not_there(cache: TensorCache, tmp_path: Path) -> None:
    """Until its block ends an entry is neither contained nor listed nor readable."""
    with cache.new_entry(KEY, ABOUT) as writer:
        writer.write("block-000", PARTS["block-000"])
        writer.finish(ABOUT)
        assert directories(tmp_path)[0].startswith(TEMPORARY)
        assert KEY not in cache
        assert cache.entries() == []
        with pytest.raises(DamagedEntryError):
            cache.read(KEY, "block-000")
    assert directories(tmp_path) == [KEY]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, StorageError])
def test_a_failure_while_writing_leaves_nothing(error: type[BaseException], cache: TensorCache, tmp_path: Path) -> None:
    """Whatever ends the block early reaches the caller as it is and leaves no directory."""
    with pytest.raises(error, match=r"^why$") as caught:
        publish(cache, KEY, meanwhile=partial(fail, error("why")))
    assert caught.type is error
    assert directories(tmp_path) == []
    publish(cache, KEY)
    assert_whole(cache, KEY)


def files_of_an_entry() -> list[str]:
    return [*(f"{part}.safetensors" for part in PARTS), "manifest.json"]


@pytest.mark.parametrize("name", files_of_an_entry())
def test_every_changed_byte_is_detected_and_its_file_named(name: str, cache: TensorCache, entry: Path) -> None:
    """One changed byte anywhere in any file of an entry is found by `verify` and never read."""
    file = entry / name
    data = file.read_bytes()
    for place in range(len(data)):
        file.write_bytes(data[:place] + bytes([data[place] ^ 0x01]) + data[place + 1 :])
        assert_named(cache, file)
    file.write_bytes(data)
    assert_whole(cache, KEY)


def assert_named(cache: TensorCache, file: Path) -> None:
    """The damage to one file of an entry is reported by everything that looks at it."""
    [problem] = cache.verify(KEY)
    assert str(file) in problem
    assert "\n" not in problem
    part = "block-000" if file.stem == "manifest" else file.stem
    with pytest.raises(DamagedEntryError) as caught:
        cache.read(KEY, part)
    assert str(caught.value) == problem
    assert caught.value.key == KEY


@pytest.mark.parametrize("name", files_of_an_entry())
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_file_is_detected_and_named(name: str, share: float, cache: TensorCache, entry: Path) -> None:
    """What a crash of the machine may leave of a file is not read."""
    file = entry / name
    os.truncate(file, int(share * file.stat().st_size))
    assert_named(cache, file)


@pytest.mark.parametrize("part", PARTS)
def test_a_deleted_part_is_detected_and_named(part: str, cache: TensorCache, entry: Path) -> None:
    """A part that is gone is damage, the other parts can still be read."""
    (entry / f"{part}.safetensors").unlink()
    assert_named(cache, entry / f"{part}.safetensors")
    [other] = PARTS.keys() - {part}
    assert same(cache.read(KEY, other), PARTS[other])


def test_a_part_of_another_entry_is_detected(cache: TensorCache, entry: Path) -> None:
    """A whole file in the wrong place is damage, too."""
    shutil.copy(entry / "block-000.safetensors", entry / "block-001.safetensors")
    assert_named(cache, entry / "block-001.safetensors")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b'"x"', b"1", b'{"about": {}, "checksums": {}}', b"\xff\xfe", b"[" * 100]
)
def test_a_manifest_of_any_other_kind_is_damage(content: bytes, cache: TensorCache, entry: Path) -> None:
    """Nothing that can stand in a manifest's place makes a listing or a check fail."""
    (entry / "manifest.json").write_bytes(content)
    assert_named(cache, entry / "manifest.json")
    [listed] = cache.entries()
    assert "manifest.json is damaged" in str(listed.about["damaged"])


def test_a_forged_manifest_value_is_detected(cache: TensorCache, entry: Path) -> None:
    """What an entry is about is protected as its parts are."""
    manifest = json.loads((entry / "manifest.json").read_bytes())
    manifest["about"]["samples"] = [0, 32]
    (entry / "manifest.json").write_text(json.dumps(manifest))
    assert_named(cache, entry / "manifest.json")


def test_an_entry_without_manifest_is_absent_and_replaced(cache: TensorCache, entry: Path, tmp_path: Path) -> None:
    """The rest of a deletion is in nobody's way."""
    (entry / "manifest.json").unlink()
    assert KEY not in cache
    assert cache.entries() == []
    publish(cache, KEY)
    assert_whole(cache, KEY)
    assert directories(tmp_path) == [KEY]


def test_removing_an_entry_leaves_the_others(cache: TensorCache, entry: Path, tmp_path: Path) -> None:
    """Only the named entry goes, with everything that belongs to it."""
    publish(cache, "other")
    cache.remove(KEY)
    assert directories(tmp_path) == ["other"]
    assert_whole(cache, "other")


def test_a_damaged_entry_can_be_removed_and_written_again(cache: TensorCache, entry: Path) -> None:
    """Damage does not outlive the entry."""
    (entry / "block-001.safetensors").write_bytes(b"")
    cache.remove(KEY)
    publish(cache, KEY)
    assert_whole(cache, KEY)


@pytest.mark.parametrize("key", ["unknown", "", ".", "..", "../calibration", "*", f"{TEMPORARY}{KEY}-1-ab"])
def test_only_listed_entries_can_be_removed(key: str, cache: TensorCache, entry: Path, tmp_path: Path) -> None:
    """Whatever is typed as a key, nothing but an entry is ever deleted."""
    leftover = tmp_path / "calibration" / f"{TEMPORARY}{KEY}-1-ab"
    shutil.copytree(entry, leftover)
    with pytest.raises(StorageError, match=r"^there is no entry .*; `cache ls` lists them$"):
        cache.remove(key)
    cache.remove(key, missing_ok=True)
    assert_whole(cache, KEY)
    assert directories(tmp_path) == [leftover.name, KEY]


def test_a_reader_never_sees_an_entry_that_is_half_deleted(
    cache: TensorCache, entry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry disappears at once: when its first file is deleted it is already gone for everybody else."""
    seen = []

    def look(directory: Path) -> None:
        seen.append((KEY in cache, cache.entries(), entry.exists(), sorted(os.listdir(directory))))

    monkeypatch.setattr(shutil, "rmtree", look)
    cache.remove(KEY)
    assert seen == [(False, [], False, sorted(files_of_an_entry()))]


def test_leftovers_of_one_key_are_cleared(cache: TensorCache, entry: Path, tmp_path: Path) -> None:
    """Unfinished directories of that key go; entries and other keys' work stay."""
    for name in (f"{TEMPORARY}{KEY}-1-ab", f"{TEMPORARY}{KEY}-22-cd", f"{TEMPORARY}other-1-ab"):
        shutil.copytree(entry, tmp_path / "calibration" / name)
    assert [listed.key for listed in cache.entries()] == [KEY]
    cache.clear_unfinished(KEY)
    assert directories(tmp_path) == [f"{TEMPORARY}other-1-ab", KEY]
    assert_whole(cache, KEY)


@pytest.mark.parametrize("last", [*PARTS, "manifest"])
def test_work_that_was_cleared_is_lost_and_never_published(
    last: str, cache: TensorCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner whose directory was cleared after any of its files is told so and publishes nothing."""
    finish_entry = EntryWriter.finish

    def clear_after(written: str) -> None:
        if written == last:
            cache.clear_unfinished(KEY)

    def finish_and_clear(writer: EntryWriter, about: dict[str, object]) -> None:
        finish_entry(writer, about)
        clear_after("manifest")

    monkeypatch.setattr(EntryWriter, "finish", finish_and_clear)
    with pytest.raises(LeaseLostError, match="took over"):
        publish(cache, KEY, meanwhile=clear_after)
    assert directories(tmp_path) == []


def begun(cache: TensorCache, error: BaseException) -> None:
    """Begin an entry, note that its first part is done, and fail in the second."""
    with suppress(type(error)), cache.resumed_entry(KEY, ABOUT) as writer:
        assert writer.progress == {}
        writer.write("block-000", PARTS["block-000"])
        writer.record({"next": 1})
        writer.write("block-001", {"gram": torch.zeros(3)})
        raise error


def test_an_entry_goes_on_from_what_was_recorded_of_it(cache: TensorCache, entry: Path, tmp_path: Path) -> None:
    """What was written before is there, what came after it is not, and the whole entry is as if it had been new."""
    files = {path.name: path.read_bytes() for path in entry.iterdir()}
    cache.remove(KEY)
    begun(cache, KeyboardInterrupt())
    assert cache.entries() == []
    with cache.resumed_entry(KEY, ABOUT) as writer:
        assert writer.progress == {"next": 1}
        assert same(writer.read("block-000"), PARTS["block-000"])
        assert not list((tmp_path / "calibration").glob("*/block-001*"))
        writer.write("block-001", PARTS["block-001"])
    assert directories(tmp_path) == [KEY]
    assert {path.name: path.read_bytes() for path in entry.iterdir()} == files


@pytest.mark.parametrize("name", ["block-000.safetensors", "unfinished.json"])
def test_a_damaged_beginning_is_begun_anew(name: str, cache: TensorCache, tmp_path: Path) -> None:
    """Neither a part whose bytes changed nor a record that cannot be read is gone on with."""
    begun(cache, KeyboardInterrupt())
    [left] = (tmp_path / "calibration").iterdir()
    data = bytearray((left / name).read_bytes())
    data[len(data) // 2] ^= 1
    (left / name).write_bytes(data)
    with cache.resumed_entry(KEY, ABOUT) as writer:
        assert writer.progress == {}
        assert not list((tmp_path / "calibration").glob("*/block*"))
        for part, tensors in PARTS.items():
            writer.write(part, tensors)
    assert directories(tmp_path) == [KEY]


def test_an_error_leaves_nothing_to_go_on_from(cache: TensorCache, tmp_path: Path) -> None:
    """What failed is begun anew: a full disk gets its room back."""
    begun(cache, StorageError("full"))
    assert directories(tmp_path) == []


def test_a_passing_entry_goes_unless_it_was_interrupted(cache: TensorCache, tmp_path: Path) -> None:
    """It is no entry to anybody; an interrupt leaves what was recorded, an end or an error nothing."""

    def passing(error: BaseException | None) -> dict[str, object]:
        before: dict[str, object] = {}
        with suppress(StorageError, KeyboardInterrupt), cache.passing_entry(KEY) as writer:
            before = dict(writer.progress)
            writer.write("block-000", PARTS["block-000"])
            writer.record({"next": 1})
            assert KEY not in cache
            assert cache.entries() == []
            if error is not None:
                raise error
        return before

    assert passing(KeyboardInterrupt()) == {}
    assert cache.is_unfinished(KEY)
    assert passing(None) == {"next": 1}
    assert not cache.is_unfinished(KEY)
    assert passing(StorageError("full")) == {}
    assert directories(tmp_path) == []


def test_publishing_a_key_twice_is_harmless(cache: TensorCache, tmp_path: Path) -> None:
    """Of two overlapping writers the first one's entry stays and the second one's work is dropped."""
    with cache.new_entry(KEY, {"by": "second"}) as second:
        for part, tensors in PARTS.items():
            second.write(part, tensors)
        publish(cache, KEY)
    assert_whole(cache, KEY)
    assert cache.entries()[0].about == ABOUT
    assert directories(tmp_path) == [KEY]


def test_processes_that_publish_the_same_keys_at_once_disturb_nobody(tmp_path: Path) -> None:
    """Three processes renaming to the same names at the same moment leave whole entries and nothing else."""
    keys = [f"{number:02d}" for number in range(10)]
    barrier = CONTEXT.Barrier(3)
    processes = [start(workers.publish_together, tmp_path, barrier, keys) for _ in range(3)]
    assert finish(*processes) == [0, 0, 0]
    cache = TensorCache(Paths(tmp_path))
    assert directories(tmp_path) == keys
    assert [cache.verify(key) for key in keys] == [[]] * len(keys)


def test_a_full_disk_in_the_middle_of_an_entry_leaves_nothing(tmp_path: Path) -> None:
    """A process that may not write more in the middle of an entry says why and what to do, and cleans up."""
    assert finish(start(workers.write_beyond_limit, tmp_path, None)) == [0]
    wrote, refused = (tmp_path / "journal").read_text().splitlines()
    assert wrote.endswith("wrote first")
    assert "second.safetensors: File too large; free space with `cache rm` or choose another --cache" in refused
    assert directories(tmp_path) == []


def test_a_full_disk_when_the_manifest_is_written_leaves_nothing(
    cache: TensorCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts without a manifest are no entry."""

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill_after(part: str) -> None:
        if part == [*PARTS][-1]:
            monkeypatch.setattr(os, "fsync", partial(fail, full))

    with pytest.raises(StorageError, match=r"^cannot use .*manifest\.json: No space left on device; free") as caught:
        publish(cache, KEY, meanwhile=fill_after)
    assert caught.type is StorageError
    assert directories(tmp_path) == []


def test_too_little_space_is_refused_in_advance(
    cache: TensorCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk that is asked about is the one that entries go to."""
    asked = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=10**9)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    cache.require_free(10**9)
    with pytest.raises(StorageError, match="1,000 MB free and 1,500 MB are needed"):
        cache.require_free(1_500_000_000)
    assert asked == [tmp_path / "calibration"] * 2


@pytest.mark.parametrize("use", ["new entry", "lease", "free space"])
def test_a_cache_that_cannot_be_written_is_refused_in_one_line(use: str, tmp_path: Path) -> None:
    """A cache directory below a regular file is named with the remedy, whatever is tried first."""
    (tmp_path / "file").write_bytes(b"")
    cache = TensorCache(Paths(tmp_path / "file"))
    uses: dict[str, Callable[[], object]] = {
        "new entry": lambda: publish(cache, KEY),
        "lease": lambda: cache.lease("model", waiting=print).__enter__(),
        "free space": lambda: cache.require_free(1),
    }
    with pytest.raises(StorageError) as caught:
        uses[use]()
    assert str(caught.value).startswith(f"cannot write to {tmp_path / 'file'}/")
    assert str(caught.value).endswith("; choose another place with --cache or PRAQTUNE_HOME")
    assert cache.entries() == []
