"""`evaluate` through the command line: what programs read, what people read, and what is refused."""

import json
import math
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import transformers

import cli
from quant.methods import METHODS
from quant.rounding.rounding import ROUNDINGS
from tests.commands import refusal
from tests.quant.rounding.test_rounding import TowardsZero

ROOT = Path(cli.__file__).parent
WORDS = ["return", "the", "number", "of", "items", "in", "a", "list", "object", "string", "that", "is", "not", "empty"]
COLUMNS = {
    "dataset": str,
    "method": str,
    "perplexity": float,
    "mean_nll": float,
    "tokens": int,
    "tokens_per_second": float,
    "bits_per_weight": float,
    "seconds": float,
    "model_bytes": int,
    "setting": (dict, type(None)),
    "plan": (list, type(None)),
    "nll_above_full_precision": (dict, type(None)),
    "kl": (dict, type(None)),
    "flips": (dict, type(None)),
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No progress bars, which a process that starts with the command line never shows, and no network."""
    huggingface_hub.utils.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()

    def refused(*args: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refused)


def write(path: Path, seed: int, count: int = 60) -> str:
    """A file of `count` documents that no other seed repeats."""
    dice = random.Random(seed)
    documents = [f"{seed}.{number} " + " ".join(dice.choices(WORDS, k=60)) for number in range(count)]
    path.write_text("\n\n".join(documents))
    return str(path)


GRID = ["--n-grid", "3"]
"""For methods with input scales."""


@pytest.fixture
def text(tmp_path: Path) -> str:
    return write(tmp_path / "text.txt", seed=1)


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """A small evaluation of the bundled model."""
    small = ["--seq-len", "32", "--eval-samples", "9", "--n-calib", "4", "--dtype", "float32"]
    return [*small, "--cache", str(tmp_path / "cache")]


def rows(capsys: Any, *arguments: str) -> list[dict[str, Any]]:
    """The rows that `evaluate` prints as JSON."""
    assert cli.main(["evaluate", *arguments, "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)["rows"]


# Results


def test_the_json_schema(capsys: Any, flags: list[str], text: str) -> None:
    """Every row has exactly the promised columns, of the promised types, and they agree with each other."""
    assert cli.main(["evaluate", *flags, *GRID, "--eval-data", text, "--method", "rtn,gwh-praq-v2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert set(record) == {"rows", "notes"}
    for row in record["rows"]:
        assert set(row) == set(COLUMNS)
        assert all(isinstance(row[name], kind) for name, kind in COLUMNS.items()), row
        assert row["perplexity"] == pytest.approx(math.exp(row["mean_nll"]))
        assert row["tokens"] == 9 * 31
        assert row["tokens_per_second"] > 0
        assert row["seconds"] > 0
        assert row["dataset"] == text
    full, rtn, v2 = record["rows"]
    assert [row["method"] for row in (full, rtn, v2)] == [
        "full precision",
        "rtn",
        "gwh-praq-v2 beta=0.5 tau=2 n_grid=3",
    ]
    assert (full["bits_per_weight"], rtn["bits_per_weight"], v2["bits_per_weight"]) == (32, 4.125, 4.125)
    assert full["model_bytes"] > 2 * rtn["model_bytes"]
    assert full["setting"] is full["nll_above_full_precision"] is full["kl"] is full["flips"] is None
    assert v2["setting"]["tau"] == 2
    for row in (rtn, v2):
        for measure, largest in (("kl", 1), ("flips", 100)):
            assert 0 < row[measure]["low"] < row[measure]["value"] < row[measure]["high"] < largest
        gap = row["nll_above_full_precision"]
        assert set(gap) == {"value", "low", "high"}
        assert gap["low"] <= gap["value"] <= gap["high"]
        assert gap["value"] == pytest.approx(row["mean_nll"] - full["mean_nll"])


def test_several_data_sets(capsys: Any, flags: list[str], text: str, tmp_path: Path) -> None:
    """Each setting has a row per data set, in the order given, and data sets do not disturb each other."""
    second = write(tmp_path / "second.txt", seed=2)
    both = rows(capsys, *flags, "--eval-data", f"{text},{second},{text}", "--calib-data", text, "--method", "rtn")
    assert [(row["method"], row["dataset"]) for row in both] == [
        ("full precision", text),
        ("full precision", second),
        ("rtn", text),
        ("rtn", second),
    ]
    assert len({row["perplexity"] for row in both}) == 4
    alone = rows(capsys, *flags, "--eval-data", text, "--calib-data", text, "--method", "rtn")
    assert [row["mean_nll"] for row in alone] == [row["mean_nll"] for row in both if row["dataset"] == text]


def test_the_default_is_the_presets(capsys: Any, flags: list[str], text: str) -> None:
    """Without a method the bundled model is measured as it is, rounded, and under the presets of V2."""
    methods = [row["method"] for row in rows(capsys, *flags, *GRID, "--eval-data", text, "--asymmetric")]
    assert methods == [
        "full precision",
        "rtn",
        "gwh-praq-v2 beta=0.5 tau=2 n_grid=3",
        "gwh-praq-v2 beta=0.3 tau=2.5 n_grid=3",
        "gwh-praq-v2 beta=0.7 tau=1.5 n_grid=3",
        "gwh-praq-v2 beta=0.4 tau=3 n_grid=3",
        "gwh-praq-v2+range+alpha+gptq beta=0 tau=5 n_grid=3 damping=0.05",
    ]


def test_setting_flags_reach_the_setting(capsys: Any, flags: list[str], text: str) -> None:
    """Every flag of a setting is in the row that it belongs to."""
    given = ["--method", "gwh-praq-v2", "--beta", "0.25", "--tau", "0.7", "--group-size", "64", "--asymmetric"]
    given += ["--scales", "linear", "--placement", "structural"]
    row = rows(capsys, *flags, *GRID, "--eval-data", text, *given)[-1]
    assert row["setting"] == {
        "method": "gwh-praq-v2",
        "bits": 4,
        "bit_budget": 0.0,
        "beta": 0.25,
        "tau": 0.7,
        "n_grid": 3,
        "n_calib": 4,
        "group_size": 64,
        "symmetric": False,
        "full_range": False,
        "range_search": "none",
        "alpha_proxy": "nearest",
        "rounding": "nearest",
        "damping": 0.05,
        "prefix": "full",
        "scales": "linear",
        "placement": "structural",
        "keep_ratio": 0.2,
        "beta_risk": 3.0,
        "tau_risk": -3.0,
        "noise_factor": 0.2,
        "variance_penalty": 0.5,
    }
    assert row["bits_per_weight"] > 4 + 20 / 64


def test_stacked_flags_and_a_recipe_reach_the_codes(capsys: Any, flags: list[str], text: str) -> None:
    """Ranges, alpha's proxy, rounding and damping of one command; and what a recipe's name says."""
    given = [*flags, *GRID, "--eval-data", text]
    stack = ["--range-search", "diagonal", "--alpha-proxy", "range", "--rounding", "gptq", "--damping", "5"]
    stacked = rows(capsys, *given, "--method", "gw-awq", *stack)[-1]
    assert stacked["method"] == "gw-awq+range+alpha+gptq n_grid=3 damping=5"
    _, plain, named = rows(capsys, *given, "--method", "gw-awq,gw-awq+range")
    assert len({row["mean_nll"] for row in (stacked, plain, named)}) == 3


@pytest.mark.slow
def test_ranges_and_rounding_reach_the_codes(capsys: Any, flags: list[str], text: str) -> None:
    """Each flag changes the perplexity, and the label says what was done."""
    given = [*flags, *GRID, "--eval-data", text, "--method", "gw-awq"]
    stacks: list[list[str]] = [
        [],
        ["--range-search", "diagonal"],
        ["--range-search", "block"],
        ["--rounding", "gptq"],
        ["--rounding", "gptq", "--damping", "5"],
        ["--full-range"],
        ["--range-search", "diagonal", "--alpha-proxy", "range"],
    ]
    measured = [rows(capsys, *given, *stack)[-1] for stack in stacks]
    assert len({row["mean_nll"] for row in measured}) == len(stacks)
    assert [row["method"] for row in measured] == [
        "gw-awq n_grid=3",
        "gw-awq+range n_grid=3",
        "gw-awq+block n_grid=3",
        "gw-awq+gptq n_grid=3 damping=0.05",
        "gw-awq+gptq n_grid=3 damping=5",
        "gw-awq+full n_grid=3",
        "gw-awq+range+alpha n_grid=3",
    ]
    named = rows(capsys, *flags, *GRID, "--eval-data", text, "--method", "gw-awq+range,gw-awq+full")
    assert [row["mean_nll"] for row in named[1:]] == [measured[1]["mean_nll"], measured[5]["mean_nll"]]


def test_linears_that_kept_nearest_rounding_are_named(
    capsys: Any, flags: list[str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rounding that loses more than nearest is not taken, and the notes say where."""
    monkeypatch.setitem(ROUNDINGS, "gptq", TowardsZero())
    command = ["evaluate", *flags, "--eval-data", text, "--method", "rtn+gptq", "--json", "-"]
    assert cli.main(command) == 0
    (note,) = [note for note in json.loads(capsys.readouterr().out)["notes"] if "nearest" in note and "rtn" in note]
    assert note.startswith("rtn+gptq damping=0.05: ")
    assert "Linears kept nearest rounding, because the ranges and codes that were asked for lose more: model." in note
    assert " more" in note


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers(capsys: Any, flags: list[str], text: str, tmp_path: Path) -> None:
    """A second run repeats every value, and finds its calibration in the cache."""
    arguments = [*flags, *GRID, "--eval-data", text, "--method", "gw-awq"]
    first = [row["mean_nll"] for row in rows(capsys, *arguments)]
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "calibration").rglob("*")}
    assert [row["mean_nll"] for row in rows(capsys, *arguments)] == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "calibration").rglob("*")} == entries
    assert [row["mean_nll"] for row in rows(capsys, *arguments, "--seed", "1")] != first


def test_json_to_a_file_and_a_table_for_people(capsys: Any, flags: list[str], text: str, tmp_path: Path) -> None:
    """With a file for the JSON the table is printed, one whole line per row."""
    path = tmp_path / "rows.json"
    assert cli.main(["evaluate", *flags, "--eval-data", text, "--method", "rtn", "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    captured = capsys.readouterr()
    header, full, rtn = captured.out.splitlines()
    assert header.split()[:3] == ["data", "method", "perplexity"]
    for line, row in zip((full, rtn), record["rows"], strict=True):
        assert f"{row['perplexity']:.3f}" in line
        assert row["method"] in line
    assert "warning" not in captured.err


@pytest.mark.parametrize("protocol", ["documents", "packed"])
def test_both_protocols(capsys: Any, flags: list[str], text: str, protocol: str) -> None:
    """Documents are shorter than or as long as blocks, and both are measured."""
    row = rows(capsys, *flags, "--eval-data", text, "--method", "rtn", "--protocol", protocol)[0]
    assert row["tokens"] <= 9 * 31


def test_bundled_text_needs_no_file(capsys: Any, flags: list[str]) -> None:
    """The bundled text is one of the data sets there are."""
    (row,) = rows(capsys, *flags, "--eval-data", "bundled:topics", "--method", "rtn")[:1]
    assert row["dataset"] == "bundled:topics"


# Refusals


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "gptq"], ["method 'gptq' is unknown", "choose one of " + ", ".join(METHODS)]),
        (["--method", "rtn,AWQ"], ["method 'AWQ' is unknown"]),
        (["--method", "gwh-praq-v2", "--beta", "1.5"], ["beta 1.5 is outside 0..1"]),
        (["--method", "gwh-praq-v2", "--beta", "-1", "--tau", "0"], ["beta -1.0", "tau 0.0 is outside 0.001..inf"]),
        (["--method", "rtn", "--group-size", "100"], ["group size 100 does not divide", "use 32, 64, 128, 256"]),
        (["--method", "rtn", "--scales", "shared"], ["'shared'", "linear", "foldable"]),
        (["--model", "org/name", "--beta", "0.3"], ["beta, n_calib given without --method"]),
        (["--method", "awq", "--group-size", "64"], ["awq does not read group_size", "give --method gw-awq"]),
        (["--method", "rtn", "--budget", "4.3", "--group-size", "64"], ["leave --group-size out"]),
        (["--dtype", "int8"], ["dtype 'int8' is unknown", "auto, float32, bfloat16, float16"]),
        (["--device", "tpu"], ["device 'tpu' cannot be used", "choose auto, cpu, cuda or cuda:N"]),
        (["--protocol", "chat"], ["protocol 'chat' is unknown", "documents or packed"]),
        (["--eval-samples", "0"], ["0 sequences of 32 tokens were asked for"]),
        (["--eval-samples", "9999"], ["has tuning text for", "sequences of 32 tokens, not for 9999"]),
        (["--method", "rtn", "--n-calib", "9999"], ["has calibration text for", "not for 9999"]),
        (["--eval-data", "absent.txt"], ["absent.txt is not a file", "bundled:docstrings", ".jsonl.gz"]),
        (["--eval-data", "bundled:c4"], ["bundled:c4 is unknown"]),
        (["--calib-data", "absent.jsonl"], ["absent.jsonl is not a file"]),
        (
            ["--model", "/no/such/model", "--method", "rtn"],
            ["model /no/such/model is neither a local path nor a hub name"],
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    capsys: Any, flags: list[str], text: str, arguments: list[str], said: list[str]
) -> None:
    """What the user can change is refused with what was received, what is allowed, and no traceback."""
    line = refusal(capsys, "evaluate", *flags, "--eval-data", text, *arguments)
    assert all(part in line for part in said), line


def test_overlapping_text_is_refused(capsys: Any, flags: list[str], text: str, tmp_path: Path) -> None:
    """Calibration text that was cut out of the evaluation text is found."""
    cut = tmp_path / "cut.txt"
    cut.write_text(Path(text).read_text()[40:9000])
    line = refusal(
        capsys,
        "evaluate",
        *flags,
        "--eval-samples",
        "60",
        "--eval-data",
        text,
        "--calib-data",
        str(cut),
        "--method",
        "rtn",
    )
    assert text in line
    assert str(cut) in line
    assert "give texts that do not overlap" in line


def test_nothing_is_measured_before_every_setting_is_known_to_suit(
    capsys: Any, flags: list[str], text: str, tmp_path: Path
) -> None:
    """A group size that does not suit is refused before the first row, and leaves no calibration behind."""
    refusal(capsys, "evaluate", *flags, "--eval-data", text, "--method", "rtn", "--group-size", "96")
    assert not (tmp_path / "cache" / "calibration").exists()


def test_a_cache_that_cannot_be_written_is_a_failure(capsys: Any, text: str, tmp_path: Path, flags: list[str]) -> None:
    """What is no mistake of the command is exit code 1, with the flag that helps."""
    (tmp_path / "file").write_text("")
    line = refusal(
        capsys,
        "evaluate",
        *flags,
        "--eval-data",
        text,
        "--method",
        "rtn",
        "--cache",
        str(tmp_path / "file" / "x"),
        code=1,
    )
    assert "choose another place with --cache" in line


def test_debug_shows_the_traceback(flags: list[str], text: str) -> None:
    """With --debug the error itself is raised."""
    with pytest.raises(ValueError, match="beta 7"):
        cli.main(["evaluate", *flags, "--eval-data", text, "--method", "gwh-praq-v2", "--beta", "7", "--debug"])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 3.2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried\nmore"),
    ],
    ids=["Python", "PyTorch"],
)
def test_memory_that_runs_out_is_one_line_with_the_remedy(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, flags: list[str], text: str, error: Exception
) -> None:
    """Wherever that happens."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("objectives.evaluation.load_model", fail)
    line = refusal(capsys, "evaluate", *flags, "--eval-data", text, "--method", "rtn", code=1)
    assert "memory ran out (" in line
    assert "--device-memory GB reads blocks whenever they are used" in line


def test_mistakes_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, flags: list[str], text: str) -> None:
    """An error that is nobody's input is not dressed up as one."""

    def broken(*args: object) -> None:
        raise KeyError("a mistake")

    monkeypatch.setattr("objectives.evaluation.lay_out", broken)
    with pytest.raises(KeyError):
        cli.main(["evaluate", *flags, "--eval-data", text])


def test_ctrl_c(capsys: Any, monkeypatch: pytest.MonkeyPatch, flags: list[str], text: str) -> None:
    """An interruption ends with exit code 130 and one line, whatever was going on."""

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("objectives.evaluation.lay_out", interrupted)
    assert "interrupted" in refusal(capsys, "evaluate", *flags, "--eval-data", text, code=130)


@pytest.mark.parametrize(
    "arguments",
    [[], ["no-such-command"], ["evaluate", "--beta", "much"], ["evaluate", "--symmetric", "--asymmetric"], ["cache"]],
)
def test_a_command_line_that_cannot_be_parsed(capsys: Any, arguments: list[str]) -> None:
    """The parser's own refusals have exit code 2, too."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: praqtune" in capsys.readouterr().err


# As a process


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("command", [[], ["evaluate"], ["calibrate"], ["cache"]])
def test_help_is_fast(command: list[str]) -> None:
    """Help is printed without importing anything heavy, and every command has examples."""
    done = run("-X", "importtime", "cli.py", *command, "--help")
    assert done.returncode == 0
    assert "usage: praqtune" in done.stdout
    assert "examples:" in done.stdout or not command
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "transformers", "datasets", "numpy", "pandas", "optuna", "scipy", "sqlalchemy"}


def test_help_names_every_command() -> None:
    """Without a command one learns which there are."""
    done = run("cli.py", "--help")
    named = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ")}
    assert named >= {"evaluate", "calibrate", "cache"}


@pytest.mark.slow
def test_offline_with_the_bundled_model(flags: list[str], text: str) -> None:
    """HF_HUB_OFFLINE=1 is no hindrance to what ships with the project, and nothing but the result is printed."""
    arguments = ["evaluate", *flags, "--eval-data", text, "--method", "rtn", "--json", "--quiet"]
    done = run("cli.py", *arguments, HF_HUB_OFFLINE="1", HF_HOME=str(Path(text).parent / "hub"))
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["rows"]) == 2
    assert done.stderr == ""


@pytest.mark.slow
def test_a_refusal_as_a_process_is_one_line(flags: list[str], text: str) -> None:
    """No library adds warnings, bars or reports to the one line of an error."""
    done = run("cli.py", "evaluate", *flags, "--eval-data", text, "--method", "rtn", "--group-size", "96", "--quiet")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
