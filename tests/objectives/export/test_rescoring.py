"""Directories are scored in few fresh processes, and each by what is in it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from objectives.errors import RunError
from objectives.export import rescoring
from objectives.export.digests import differing, measured_digests
from objectives.export.rescoring import rescore
from objectives.progress import silent
from objectives.scoring import score_all
from storage.results import ResultStore
from tests.objectives import tiny

TEXT = tiny.sequences([20] * 10, seed=2)
LOADERS = {Path("a"): "transformers", Path("b"): "gptq", Path("c"): "gguf", Path("d"): "mlx", Path("e"): "mlx-package"}


def waves_of(monkeypatch: pytest.MonkeyPatch, threads: int, available: int) -> list[tuple[list[list[int]], int]]:
    """What runs side by side, and with how many threads each; every directory has its number as its score."""
    waves = []

    def run(commands: Sequence[Sequence[str]], place: Path, each: int, told: Callable[[int, int], None]) -> list[None]:
        shares = [json.loads(command[6]) for command in commands]
        waves.append((shares, each))
        for number in (number for share in shares for number in share):
            values = {"nll": torch.tensor([float(number)]), "tokens": torch.ones(1), "clusters": torch.zeros(1)}
            ResultStore(place).save(f"score-{number}", {"digests": {"number": str(number)}}, values)
        return [None] * len(commands)

    monkeypatch.setattr(rescoring, "_run", run)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(rescoring, "available_bytes", lambda _: available)
    scores = rescore(LOADERS, TEXT, tiny.model(tiny.LAYOUTS["llama"]()), silent)
    assert [(reloaded.score.mean_nll, reloaded.digests) for reloaded in scores.values()] == [
        (number, {"number": str(number)}) for number in range(len(LOADERS))
    ]
    return waves


SHARES = [[0, 2], [1, 3], [4]]


def test_what_the_same_packages_read_shares_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after another where there is one thread, or too little memory for all."""
    apart = [([share], 1) for share in SHARES]
    assert waves_of(monkeypatch, threads=1, available=2**40) == apart
    assert waves_of(monkeypatch, threads=3, available=2**10) == [(shares, 3) for shares, _ in apart]


def test_processes_run_side_by_side_where_there_are_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """They share them."""
    assert waves_of(monkeypatch, threads=6, available=2**40) == [(SHARES, 2)]


@pytest.mark.slow
def test_each_directory_is_scored_by_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process for two of them, beside another; one that does not load is named."""
    models = [tiny.model(tiny.LAYOUTS["llama"](), seed=seed, dtype=torch.bfloat16) for seed in (1, 2)]
    directories = [tmp_path / str(number) for number in range(len(models))]
    for model, directory in zip(models, directories, strict=True):
        model.module.save_pretrained(directory)
    told: list[tuple[str, int]] = []
    scores = rescore(
        dict.fromkeys(directories, "transformers"), TEXT, models[0], lambda phase, done, _: told.append((phase, done))
    )
    for model, directory in zip(models, directories, strict=True):
        torch.testing.assert_close(scores[directory].score.nll, score_all(model.module, TEXT, "", silent).nll)
        assert not differing(measured_digests(model), scores[directory].digests)
    assert told == [(f"scoring {number} in a fresh process", done) for number in range(2) for done in (8, 10)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    (directories[1] / "model.safetensors").unlink()
    with pytest.raises(RunError, match=f"{directories[1]} cannot be loaded and scored in a fresh process: "):
        rescore({**dict.fromkeys(directories, "transformers"), directories[0] / "..": "gptq"}, TEXT, models[0], silent)
