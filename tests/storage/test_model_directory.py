"""A model directory appears whole or not at all, never over something else, and every refusal is one line."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from storage.errors import AddressError, StorageError
from storage.files import TEMPORARY
from storage.model_directory import REMEDY, new_directories, new_directory, require_room, require_vacant

ROOT = Path(__file__).resolve().parents[2]


def fill(place: Path) -> None:
    (place / "weights").write_bytes(b"\x01" * 1000)
    (place / "code").mkdir()
    (place / "code" / "model.py").write_text("pass")


def refusal(directory: Path) -> str:
    """What both say of a directory that cannot be written."""
    with pytest.raises(AddressError) as early:
        require_vacant(directory, 0)
    with pytest.raises(StorageError) as late, new_directory(directory):
        pytest.fail("the block must not run")
    assert not isinstance(late.value, AddressError)
    assert "\n" not in str(early.value) + str(late.value)
    assert str(early.value) == str(late.value)
    return str(early.value)


def test_a_directory_appears_with_everything_in_it(tmp_path: Path) -> None:
    """What was written is there under the directory's name, missing parents were made, and nothing else is left."""
    target = tmp_path / "some" / "models" / "mine"
    require_vacant(target, 1000)
    assert not target.parent.exists()
    with new_directory(target) as place:
        fill(place)
        assert place.parent == target.parent
        assert not target.exists()
    assert os.listdir(target.parent) == ["mine"]
    assert sorted(path.name for path in target.rglob("*")) == ["code", "model.py", "weights"]
    assert (target / "weights").read_bytes() == b"\x01" * 1000


def test_an_empty_directory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that was made for the model is used, also when it is the one the user is in."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    require_vacant(Path("."), 1000)
    with new_directory(Path(".")) as place:
        fill(place)
    assert (tmp_path / "mine" / "weights").stat().st_size == 1000
    assert os.listdir(tmp_path) == ["mine"]


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_is_there_is_not_touched(tmp_path: Path, kind: str) -> None:
    """A directory that holds something, or a file, is refused with its name and the remedy, and stays as it is."""
    target = tmp_path / "mine"
    kept = target if kind == "file" else target / "kept"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("precious")
    assert refusal(target) == f"{target} exists already; choose another --output-dir or remove it first"
    assert kept.read_text() == "precious"
    assert os.listdir(tmp_path) == ["mine"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        ValueError("a mistake"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    """Whatever ends the block early, no part of the directory is left; errors of the disk say so in one line."""
    target = tmp_path / "mine"
    is_disk = isinstance(error, OSError | SafetensorError)

    def write() -> None:
        with new_directory(target) as place:
            fill(place)
            raise error

    with pytest.raises(StorageError if is_disk else type(error)) as caught:
        write()
    assert os.listdir(tmp_path) == []
    if is_disk:
        assert str(target) in str(caught.value)
        assert "No space left on device" in str(caught.value)
        assert str(caught.value).endswith(f"; {REMEDY}")
        assert "\n" not in str(caught.value)


def test_of_two_writers_one_is_refused(tmp_path: Path) -> None:
    """The directory belongs to the writer that finished first; the other's work is removed and it is told so."""
    target = tmp_path / "mine"

    def write() -> None:
        with new_directory(target) as slow:
            fill(slow)
            with new_directory(target) as fast:
                (fast / "first").write_text("first")

    with pytest.raises(StorageError, match=r"cannot use .*mine: Directory not empty; "):
        write()
    assert os.listdir(target) == ["first"]
    assert os.listdir(tmp_path) == ["mine"]


def test_a_failure_to_make_it_durable_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that loses data when it is told to keep it is noticed before the directory has its name."""

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match="Input/output error"), new_directory(tmp_path / "mine") as place:
        fill(place)
    assert os.listdir(tmp_path) == []


def names(place: Path) -> list[str]:
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*"))


@pytest.mark.parametrize("parent", ["absent", "empty", "used"])
def test_several_directories_appear_together(parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one rename with their parent where that is absent or empty, so that a kill cannot come between two."""
    models = tmp_path / "models"
    if parent != "absent":
        models.mkdir()
    if parent == "used":
        (models / "kept").write_text("precious")
    renamed: list[str] = []
    rename = Path.rename

    def counted(path: Path, target: Path) -> Path:
        renamed.append(target.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", counted)
    with new_directories([models / "a", models / "b"]) as places:
        for place in places:
            (place / "weights").write_text(place.name)
        assert not (models / "a").exists()
    assert renamed == (["a", "b"] if parent == "used" else ["models"])
    kept = ["kept"] if parent == "used" else []
    assert names(tmp_path) == sorted(
        ["models", *(f"models/{name}" for name in ("a", "a/weights", "b", "b/weights", *kept))]
    )


def test_where_a_disk_is_mounted_each_directory_appears_on_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No directory can take the place of one that another disk is mounted at."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with new_directories([tmp_path / "a", tmp_path / "b"]) as places:
        assert {place.parent for place in places} == {tmp_path}
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("parent", ["absent", "used"])
@pytest.mark.parametrize("taken", ["a", "b"])
def test_where_one_of_several_directories_is_taken_none_appears(parent: str, taken: str, tmp_path: Path) -> None:
    """Somebody else fills one while they are written; that stays, and nothing else is left."""
    models = tmp_path / "models"
    if parent == "used":
        models.mkdir()
        (models / "kept").write_text("precious")

    def write() -> None:
        with new_directories([models / "a", models / "b"]) as places:
            for place in places:
                fill(place)
            (models / taken).mkdir(parents=True)
            (models / taken / "theirs").write_text("theirs")

    with pytest.raises(StorageError, match="exists already" if parent == "used" else "Directory not empty"):
        write()
    kept = ["kept"] if parent == "used" else []
    assert names(models) == sorted([taken, f"{taken}/theirs", *kept])
    assert os.listdir(tmp_path) == ["models"]


def test_directories_before_one_that_cannot_be_renamed_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all were vacant when that was looked at last."""
    (tmp_path / "kept").write_text("precious")
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if target.name == "b":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)

    def write() -> None:
        with new_directories([tmp_path / "a", tmp_path / "b"]) as places:
            for place in places:
                fill(place)

    with pytest.raises(StorageError, match=r"cannot use .*/b: Input/output error"):
        write()
    assert os.listdir(tmp_path) == ["kept"]


def test_room_is_needed_for_all_directories_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would fit, and both do not."""
    monkeypatch.setattr("storage.files.shutil.disk_usage", lambda _: SimpleNamespace(free=15_000_000))
    require_room({tmp_path / "a": 7_000_000, tmp_path / "b": 8_000_000})
    with pytest.raises(StorageError, match="has 15 MB free and 16 MB are needed; free space or choose"):
        require_room({tmp_path / "a": 8_000_000, tmp_path / "b": 8_000_000})


@pytest.fixture
def umask() -> Iterator[int]:
    """A mask under which the group may read."""
    mask = 0o027
    before = os.umask(mask)
    yield mask
    os.umask(before)


def test_everyone_whom_the_umask_allows_may_read_it(tmp_path: Path, umask: int) -> None:
    """A file that its writer kept to itself is as readable as the directory."""
    with new_directory(tmp_path / "mine") as place:
        fill(place)
        (place / "weights").chmod(0o600)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "mine").rglob("*")}
    assert modes == {"weights": 0o640, "code": 0o750, "model.py": 0o640}
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o777 & ~umask


def test_too_little_room_is_noticed_early(tmp_path: Path) -> None:
    """A disk without room for the model is refused with both numbers, wherever the directory is going to be."""
    with pytest.raises(StorageError, match=r"MB free and 1,000,000,000,000 MB are needed; free space or choose"):
        require_vacant(tmp_path / "not" / "yet" / "there", 10**18)


def test_a_place_below_a_file_is_refused_early(tmp_path: Path) -> None:
    """A path that leads through a file can never become a directory."""
    (tmp_path / "file").write_text("")
    with pytest.raises(AddressError, match=r"cannot write to .*file; choose another --output-dir"):
        require_vacant(tmp_path / "file" / "mine", 0)


def test_a_place_that_may_not_be_written_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions are looked at before any work is done."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(AddressError, match=r"cannot write to .*; choose another --output-dir"):
        require_vacant(tmp_path / "mine", 0)


def test_the_temporary_directory_is_known_by_its_name(tmp_path: Path) -> None:
    """What a killed writer leaves behind is named as every temporary file of the project."""
    with new_directory(tmp_path / "mine") as place:
        assert place.name.startswith(f"{TEMPORARY}mine-")


def test_what_a_killed_writer_left_is_named_by_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With its size; that of a writer that still runs, and that of another directory, are let be."""
    target = tmp_path / "mi[n]e"
    died = subprocess.Popen([sys.executable, "-c", ""])
    died.wait()
    left, running = (tmp_path / f"{TEMPORARY}mi[n]e-{pid}-0a" for pid in (died.pid, os.getpid()))
    for path in (left, running, tmp_path / f"{TEMPORARY}other-{died.pid}-0a"):
        path.mkdir()
    (left / "model.safetensors").write_bytes(b"x" * 3_000_000)
    require_vacant(target, 0)
    # One of several formats.
    require_vacant(target / "gptq", 0)
    assert caplog.messages == 2 * [
        f"{left} was left by a writer that died (3 MB); remove it, unless one on another machine is at it"
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_of_a_directory_that_is_being_written(number: signal.Signals, tmp_path: Path) -> None:
    """The command ends as told, and what it was writing is gone."""
    script = (
        "import sys, time\nfrom pathlib import Path\nimport cli\nfrom hpo.commands import evaluate\n"
        "from hpo.commands.command import Command\nfrom storage.model_directory import new_directory\n"
        "def run(parsed):\n    with new_directory(Path(sys.argv[1])) as place:\n"
        "        (place / 'weights').write_bytes(b'x')\n        print('writing', flush=True)\n        time.sleep(60)\n"
        "evaluate.COMMAND = Command(examples='', add_flags=lambda parser: None, run=run)\n"
        "sys.exit(cli.main(['evaluate']))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "mine")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(number)
        assert process.stderr.read() == "praqtune: terminated; what was finished is kept\n"
        assert process.wait() == 143
    assert list(tmp_path.iterdir()) == []
