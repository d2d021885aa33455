"""`calibrate` and `cache` as a person and a program use them: what they print, where, and with which exit code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

import cli
from objectives import precision
from objectives.bundled.text import MODEL_DIRECTORY, held_out
from objectives.model import loading as models
from storage.cache import TensorCache
from storage.paths import Paths

SIZES = (16, 20)


class Ended(NamedTuple):
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def record(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command in this process."""

    def command(*arguments: object) -> Ended:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = int(str(ended.code))
        return Ended(code, *capsys.readouterr())

    # The command line asks for this by a variable that is read when transformers is imported, which is long ago here.
    transformers.utils.logging.disable_progress_bar()
    return command


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name two files of prose."""
    directory = tmp_path_factory.mktemp("text")
    for name, part in (("calibration", held_out("docstrings")[:20]), ("evaluation", held_out("topics")[:10])):
        (directory / f"{name}.txt").write_text("\n\n".join(part))
    flags = ["--calib-data", str(directory / "calibration.txt"), "--eval-data", str(directory / "evaluation.txt")]
    return [*flags, "--seq-len", "64", "--eval-samples", "4", "--dtype", "float32"]


@pytest.fixture(scope="module")
def filled(text: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two entries, and in `record.json` what calibration said about them; tests copy it."""
    home = tmp_path_factory.mktemp("filled") / "home"
    sizes = ",".join(map(str, SIZES))
    flags = ["--cache", str(home), "--json", str(home.parent / "record.json"), "--sizes", sizes]
    assert cli.main(["calibrate", *flags, *text]) == 0
    return home


@pytest.fixture
def home(filled: Path, tmp_path: Path) -> Path:
    """A copy of the filled home."""
    return Path(shutil.copytree(filled, tmp_path / "home"))


@pytest.fixture
def entries(home: Path) -> list[Path]:
    """The directories of its entries."""
    return [home / "calibration" / entry.key for entry in TensorCache(Paths(home)).entries()]


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x01
    file.write_bytes(data)


# calibrate


def test_calibrate_says_what_it_computed(filled: Path, entries: list[Path]) -> None:
    """The record names every size's entries and how many samples were read for them."""
    record = json.loads((filled.parent / "record.json").read_text())
    assert record["samples_read"] == SIZES[-1]
    assert record["model"] == "bundled"
    assert record["source"].endswith("calibration.txt")
    assert record["seconds"] > 0
    assert sorted(record["entries"].values()) == [entry.name for entry in entries]


def test_calibrating_again_reads_nothing(home: Path, text: list[str], run: Run) -> None:
    """A second run finds everything in the cache, prints one JSON document and nothing else."""
    ended = run("calibrate", "--cache", home, "--sizes", "20,16", "--json", *text)
    assert (ended.code, ended.err) == (0, "")
    assert ended.record["samples_read"] == 0
    assert list(ended.record["entries"]) == ["16", "20"]


def test_calibrate_fills_the_cache_for_the_type_that_is_measured_in(
    text: list[str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model's own type disagrees with float32, `evaluate` gives it up, and so does calibration."""
    flags = ("--cache", tmp_path / "home", "--sizes", "16", "--json", *text)
    monkeypatch.setattr(models, "fast_dtype", lambda kind: torch.bfloat16)
    monkeypatch.setattr(precision, "TOLERANCE", 1.0)
    own = run("calibrate", *flags, "--dtype", "auto").record
    monkeypatch.setattr(precision, "TOLERANCE", -1.0)
    given_up = run("calibrate", *flags, "--dtype", "auto").record
    wide = run("calibrate", *flags).record
    assert given_up["entries"] == wide["entries"] != own["entries"]
    assert (own["samples_read"], given_up["samples_read"], wide["samples_read"]) == (16, 16, 0)


def test_a_dry_run_counts_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    """`--dry-run` needs no weights and no text, says what each phase takes, and leaves no directory behind."""
    config = transformers.AutoConfig.from_pretrained(MODEL_DIRECTORY)
    config.save_pretrained(tmp_path / "model")
    flags = ("--dry-run", "--model", tmp_path / "model", "--cache", tmp_path / "home", "--sizes", "16,512")
    table = run("calibrate", *flags)
    record = run("calibrate", *flags, "--json").record
    assert (table.code, table.err) == (0, "")
    assert "0.06 GB: 6 entries" in table.out
    assert "nothing was run, read or written" in table.out
    assert record["entries"] == 6
    assert record["setting"]["n_calib"] == 512
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    refused = run("calibrate", *flags, "--model", tmp_path)
    assert refused.code == 2
    assert refused.err.startswith("praqtune: ")
    assert len(refused.err.splitlines()) == 1


def test_calibrate_shows_people_a_table(home: Path, entries: list[Path], text: list[str], run: Run) -> None:
    """Without --json every key is in the table, and the last line says what was read."""
    ended = run("calibrate", "--cache", home, "--sizes", "16,20", *text)
    assert (ended.code, ended.err) == (0, "")
    assert all(entry.name in ended.out for entry in entries)
    assert ended.out.splitlines()[-1] == "0 samples were read, the others were in the cache"


def test_the_cache_is_below_the_home_of_the_environment(
    home: Path, text: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --cache the environment says where calibration is kept."""
    monkeypatch.setenv("PRAQTUNE_HOME", str(home))
    assert run("calibrate", "--sizes", "20", "--json", *text).record["samples_read"] == 0
    assert len(run("cache", "ls", "--json").record["entries"]) == 2


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        ("many", "--sizes 'many' is not a list of whole numbers; write 16,32,64, for example"),
        ("16,", "--sizes '16,' is not a list of whole numbers; write 16,32,64, for example"),
        ("0,16", "--sizes '0,16' has a number below 1"),
        ("1000000", "not for 1000000; ask for fewer or shorter ones, or give more text"),
    ],
)
def test_impossible_sizes_are_wrong_usage(
    sizes: str, complaint: str, tmp_path: Path, text: list[str], run: Run
) -> None:
    """What cannot be a size is refused in one line with exit code 2, and leaves nothing."""
    ended = run("calibrate", "--cache", tmp_path / "home", "--sizes", sizes, "--json", *text)
    assert (ended.code, ended.out) == (2, "")
    assert_one_line(ended.err, complaint)
    assert not (tmp_path / "home").exists()


def test_a_cache_that_cannot_be_written_fails_in_one_line(tmp_path: Path, text: list[str], run: Run) -> None:
    """A cache below a regular file is a failure (exit code 1) with its remedy."""
    (tmp_path / "file").write_bytes(b"")
    ended = run("calibrate", "--cache", tmp_path / "file", "--sizes", "16", *text)
    assert (ended.code, ended.out) == (1, "")
    assert_one_line(ended.err, "choose another place with --cache or PRAQTUNE_HOME")


def assert_one_line(printed: str, ending: str) -> None:
    assert printed.startswith("praqtune: ")
    assert printed.endswith(f"{ending}\n")
    assert printed.count("\n") == 1


# cache ls


def test_ls_lists_every_entry(home: Path, entries: list[Path], run: Run) -> None:
    """For programs: key, bytes, and what the entry holds."""
    ended = run("cache", "ls", "--cache", home, "--json")
    assert (ended.code, ended.err) == (0, "")
    records = ended.record["entries"]
    assert [record["key"] for record in records] == [entry.name for entry in entries]
    assert [record["bytes"] for record in records] == [
        sum(file.stat().st_size for file in entry.iterdir()) for entry in entries
    ]
    assert sorted(record["samples"] for record in records) == [[0, 16], [0, 20]]
    assert {record["model"] for record in records} == {"bundled"}
    assert sorted(record["tokens"] for record in records) == [size * 64 for size in SIZES]


def test_ls_shows_people_a_table(home: Path, entries: list[Path], run: Run) -> None:
    """For people: a line per entry, and the sum."""
    ended = run("cache", "ls", "--cache", home)
    assert (ended.code, ended.err) == (0, "")
    heading, *lines, total = ended.out.splitlines()
    assert heading.split() == ["key", "MB", "holds"]
    assert [line.split()[0] for line in lines] == [entry.name for entry in entries]
    assert all("model bundled" in line for line in lines)
    assert total.startswith("2 entries, ")


def test_a_cache_that_was_never_used_is_empty(tmp_path: Path, run: Run) -> None:
    """Looking at an empty cache is no error and creates nothing."""
    for action in ("ls", "verify"):
        ended = run("cache", action, "--cache", tmp_path / "never", "--json")
        assert (ended.code, ended.err, ended.record) == (0, "", {"entries": []})
    assert run("cache", "rm", "--all", "--cache", tmp_path / "never", "--json").record == {"removed": []}
    assert not (tmp_path / "never").exists()


def test_ls_names_an_entry_with_a_damaged_manifest(home: Path, entries: list[Path], run: Run) -> None:
    """An entry that cannot say what it holds is still listed, so that it can be removed."""
    damage(entries[1] / "manifest.json")
    ended = run("cache", "ls", "--cache", home, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert "manifest.json is damaged" in ended.record["entries"][1]["damaged"]


# cache verify


def test_verify_of_a_whole_cache_succeeds(home: Path, entries: list[Path], run: Run) -> None:
    """Exit code 0, every key, no problem."""
    ended = run("cache", "verify", "--cache", home, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.record["entries"] == [{"key": entry.name, "problems": []} for entry in entries]
    assert run("cache", "verify", "--cache", home).out.splitlines()[-1] == "2 entries, 0 damaged"


@pytest.mark.parametrize("name", ["block-002.safetensors", "manifest.json"])
def test_verify_names_the_damaged_file(name: str, home: Path, entries: list[Path], run: Run) -> None:
    """Exit code 1, the file in the record, the key and the remedy in the only line on standard error."""
    damage(entries[0] / name)
    ended = run("cache", "verify", "--cache", home, "--json")
    assert ended.code == 1
    first, second = ended.record["entries"]
    assert len(first["problems"]) == 1
    assert str(entries[0] / name) in first["problems"][0]
    assert second["problems"] == []
    assert_one_line(ended.err, f"damaged: {entries[0].name}; `cache rm` them, or let the next run compute them again")
    shown = run("cache", "verify", "--cache", home)
    assert shown.code == 1
    assert str(entries[0] / name) in shown.out
    assert shown.out.splitlines()[-1] == "2 entries, 1 damaged"


def test_verify_names_every_damaged_file(home: Path, entries: list[Path], run: Run) -> None:
    """Damage to one file hides no other damage."""
    damaged = [entries[0] / "block-001.safetensors", entries[0] / "block-004.safetensors", entries[1] / "manifest.json"]
    for file in damaged:
        damage(file)
    problems = [
        problem
        for entry in run("cache", "verify", "--cache", home, "--json").record["entries"]
        for problem in entry["problems"]
    ]
    assert len(problems) == len(damaged)
    assert all(str(file) in problem for file, problem in zip(damaged, problems, strict=True))


# cache rm


def test_rm_removes_what_it_is_told(home: Path, entries: list[Path], run: Run) -> None:
    """The named entry goes, the other one stays whole."""
    ended = run("cache", "rm", entries[0].name, "--cache", home, "--json")
    assert (ended.code, ended.err, ended.record) == (0, "", {"removed": [entries[0].name]})
    assert [path.name for path in (home / "calibration").iterdir()] == [entries[1].name]
    assert run("cache", "verify", "--cache", home).code == 0


def test_rm_all_removes_everything(home: Path, entries: list[Path], run: Run) -> None:
    """Every entry goes, damaged ones included."""
    damage(entries[1] / "manifest.json")
    ended = run("cache", "rm", "--all", "--cache", home)
    assert (ended.code, ended.out, ended.err) == (0, "2 entries removed\n", "")
    assert run("cache", "ls", "--cache", home, "--json").record == {"entries": []}
    assert list((home / "calibration").iterdir()) == []


@pytest.mark.parametrize("key", ["unknown", ".."])
def test_rm_of_an_unknown_key_fails_in_one_line(key: str, home: Path, entries: list[Path], run: Run) -> None:
    """A key that is not listed is a failure (exit code 1), whatever it looks like, and nothing is lost."""
    ended = run("cache", "rm", key, "--cache", home)
    assert (ended.code, ended.out) == (1, "")
    assert_one_line(ended.err, f"there is no entry {key} in {home / 'calibration'}; `cache ls` lists them")
    assert run("cache", "verify", "--cache", home, "--json").record["entries"] == [
        {"key": entry.name, "problems": []} for entry in entries
    ]


@pytest.mark.parametrize("arguments", [["rm"], ["rm", "KEY", "--all"], ["wash"], []])
def test_wrong_usage_is_exit_code_two(arguments: list[str], home: Path, run: Run) -> None:
    """What cannot be understood removes nothing and says how it is written."""
    ended = run("cache", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("usage: praqtune cache")
    assert len(TensorCache(Paths(home)).entries()) == 2


def test_json_goes_to_a_file_when_one_is_named(home: Path, tmp_path: Path, run: Run) -> None:
    """`--json FILE` writes the record and still prints the table; a place that cannot be written is one line."""
    ended = run("cache", "ls", "--cache", home, "--json", tmp_path / "entries.json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-1].startswith("2 entries, ")
    assert len(json.loads((tmp_path / "entries.json").read_text())["entries"]) == 2
    refused = run("cache", "ls", "--cache", home, "--json", tmp_path / "absent" / "entries.json")
    assert refused.code == 1
    assert refused.err.startswith(f"praqtune: cannot use {tmp_path / 'absent' / 'entries.json'}: ")
    assert refused.err.count("\n") == 1
