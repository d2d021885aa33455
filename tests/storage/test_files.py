"""Files appear whole or not at all, and every refusal of the disk is one line with its remedy."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.errors import StorageError
from storage.files import TEMPORARY, checksum, disk_errors, require_free, temporary_name, write_file
from tests.processes import finish, start
from tests.storage import workers

REMEDIES = {
    errno.ENOSPC: "free space with `cache rm` or choose another --cache",
    errno.EDQUOT: "free space with `cache rm` or choose another --cache",
    errno.EFBIG: "free space with `cache rm` or choose another --cache",
    errno.EIO: "check the path, its permissions and the disk",
    errno.EROFS: "check the path, its permissions and the disk",
}


def test_checksum_is_the_published_xxh3() -> None:
    """Checksums written today can be checked by later versions and by other programs."""
    assert checksum(b"") == "99aa06d3014798d86001c324468d497f"


def test_every_flipped_bit_changes_the_checksum() -> None:
    """One flipped bit anywhere is noticed."""
    data = bytes(range(64))
    flipped = {
        checksum(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        for place in range(len(data))
        for bit in range(8)
    }
    assert len(flipped) == 8 * len(data)
    assert checksum(data) not in flipped


def test_temporary_names_are_beside_their_file_and_never_repeat(tmp_path: Path) -> None:
    """A rename from the temporary name stays within one directory, and two writers never share one."""
    names = {temporary_name(tmp_path / "file") for _ in range(100)}
    assert len(names) == 100
    assert all(name.parent == tmp_path and name.name.startswith(TEMPORARY) for name in names)


def test_a_written_file_holds_exactly_the_bytes(tmp_path: Path) -> None:
    """Writing and replacing leave one file with the last contents."""
    path = tmp_path / "file"
    for data in (b"", b"\x00\xff" * 5000, b"short"):
        write_file(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["file"]


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path: Path) -> None:
    """A file is replaced, not overwritten: who has it open reads on in the contents it found."""
    path = tmp_path / "file"
    write_file(path, b"old contents")
    with path.open("rb", buffering=0) as reader:
        assert reader.read(3) == b"old"
        write_file(path, b"NEW CONTENTS")
        assert reader.read() == b" contents"


@pytest.mark.parametrize("code", REMEDIES, ids=errno.errorcode.get)
def test_a_refused_write_says_the_remedy_and_leaves_the_old_file(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the disk answers when data is made durable, nothing half written stays behind."""
    path = tmp_path / "file"
    write_file(path, b"old")

    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError) as caught:
        write_file(path, b"new")
    assert str(caught.value) == f"cannot use {path}: {os.strerror(code)}; {REMEDIES[code]}"
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a write is no error of the disk, and leaves no temporary file."""

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "file", b"data")
    assert os.listdir(tmp_path) == []


def test_a_device_or_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    """A file that took the place of `/dev/null` would harm the whole machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_file(pipe, b"told")
        assert os.read(reader, 9) == b"told"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_what_a_link_leads_to_is_written(tmp_path: Path) -> None:
    """The link stays: `/dev/stdout` is one."""
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"old")
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_file_below_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    """A path that cannot exist is named."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"^cannot use .*/file/below: Not a directory; check the path[^\n]*$"):
        write_file(tmp_path / "file" / "below", b"data")


def test_an_error_without_a_number_is_still_explained(tmp_path: Path) -> None:
    """Errors that carry only words keep their words."""
    with pytest.raises(StorageError, match=r"cannot use .*: unheard of; check the path"), disk_errors(tmp_path):
        raise OSError("unheard of")


def test_a_real_limit_of_the_operating_system_is_reported(tmp_path: Path) -> None:
    """A process that may not write so much says so in one line and leaves the directory as it was."""
    target = tmp_path / "target"
    target.mkdir()
    write_file(target / "file", b"old")
    assert finish(start(workers.write_beyond_limit, tmp_path, target / "file")) == [0]
    [line] = (tmp_path / "journal").read_text().splitlines()
    refusal = f"refused: cannot use {target / 'file'}: File too large; free space with `cache rm` or choose another"
    assert refusal in line
    assert os.listdir(target) == ["file"]
    assert (target / "file").read_bytes() == b"old"


@pytest.mark.parametrize("free", [0, 1_499_999_999])
def test_too_little_free_space_is_refused_with_both_numbers(
    free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What will not fit is not begun."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(StorageError) as caught:
        require_free(tmp_path, 1_500_000_000)
    assert str(caught.value) == (
        f"{tmp_path} has {free / 1e6:,.0f} MB free and 1,500 MB are needed; "
        "free space with `cache rm` or choose another --cache"
    )


def test_what_just_fits_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many bytes as are free may be written."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    require_free(tmp_path, 1000)


def test_free_space_of_a_missing_directory_is_refused_in_one_line(tmp_path: Path) -> None:
    """A directory that vanished is an error of the disk like any other."""
    with pytest.raises(StorageError, match=r"cannot use .*gone: No such file"):
        require_free(tmp_path / "gone", 1)
