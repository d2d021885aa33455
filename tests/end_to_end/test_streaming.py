"""Models that are too large for the memory, through the command line: every number and every file is the same."""

import json
from pathlib import Path
from typing import Any

import pytest

import cli

SMALL = ["--dtype", "float32", "--seq-len", "32", "--n-calib", "4", "--quiet"]
TIGHT = ["--device-memory", "0.011", "--max-memory", "0.05"]
MEASURED = ("dataset", "method", "perplexity", "mean_nll", "kl", "flips", "bits_per_weight", "nll_above_full_precision")


def ran(capsys: Any, *arguments: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    assert cli.main([*arguments, "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_evaluate_measures_the_same_with_little_memory(capsys: Any, tmp_path: Path) -> None:
    """One block in memory and one block's sums at a time: the rows are the same, and a note says what was done."""
    flags = ["evaluate", "--method", "gw-awq", "--n-grid", "3", "--eval-samples", "4", *SMALL]
    whole = ran(capsys, *flags, "--cache", str(tmp_path / "whole"))
    place = tmp_path / "elsewhere"
    tight = ran(capsys, *flags, *TIGHT, "--cache", str(tmp_path / "parts"), "--offload", str(place))
    assert [[row[key] for key in MEASURED] for row in whole["rows"]] == [
        [row[key] for key in MEASURED] for row in tight["rows"]
    ]
    note = "6 of 6 blocks are read from their files whenever they are used: weights take 0.01 GB instead of 0.05"
    assert [text for text in tight["notes"] if text.startswith(note)]
    assert not [text for text in whole["notes"] if "read from their files" in text]
    # What is written of blocks has no name there.
    assert place.is_dir()
    assert not list(place.iterdir())


@pytest.mark.parametrize(("flag", "words"), [
    (["--device-memory", "0.001"], "needs at least 0.010 GB for weights on cpu in torch.float32"),
    (["--device-memory", "0.011", "--offload", "/proc/nowhere"], "cannot use /proc/nowhere"),
])  # fmt: skip
def test_what_cannot_be_streamed_is_refused_in_one_line(
    capsys: Any, tmp_path: Path, flag: list[str], words: str
) -> None:
    """Too little for a block, and a place that cannot be written to."""
    command = ["quantize", "--method", "rtn", "--out", str(tmp_path / "out")]
    assert cli.main([*command, *SMALL, "--cache", str(tmp_path), *flag]) in (1, 2)
    error = capsys.readouterr().err.strip()
    assert words in error.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("form", "grid"), [
    ("compressed-tensors", "--symmetric"), ("gptq", "--symmetric"), ("mlx", "--asymmetric"), ("gguf", "--asymmetric")
])  # fmt: skip
def test_a_packed_model_is_the_same_file_for_file(capsys: Any, tmp_path: Path, form: str, grid: str) -> None:
    """What is written of a streamed model has the bytes of what is written of the model in memory, and is proven so."""
    flags = ["quantize", "--method", "gw-awq", "--group-size", "32", "--n-grid", "3", "--format", form, grid, *SMALL]
    for name, memory in (("whole", []), ("parts", TIGHT)):
        ran(capsys, *flags, *memory, "--cache", str(tmp_path / "cache" / name), "--out", str(tmp_path / name))
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert ("model.gguf" if form == "gguf" else "model.safetensors") in files
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


@pytest.mark.slow
def test_a_study_with_little_memory_has_the_same_trials(capsys: Any, tmp_path: Path) -> None:
    """Every trial of a streamed study, pruned or not, has the value that it has in memory."""
    flags = ["optimize", "--trials", "6", "--eval-samples", "16", "--n-grid", "3", *SMALL]
    studies = [
        ran(capsys, *flags, *memory, "--cache", str(tmp_path / name), "--study", "same", "--out", str(tmp_path / name))
        for name, memory in (("whole", []), ("parts", TIGHT))
    ]
    assert studies[0]["trials"]
    first, second = ([(row["number"], row["value"], row["state"]) for row in study["trials"]] for study in studies)
    assert first == second
