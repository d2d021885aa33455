"""Perplexities of a proof are compared once all tensors are equal, up to what a runtime's arithmetic scatters."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from objectives.errors import RunError
from objectives.export import writing
from objectives.export.digests import loaded_digests
from objectives.export.formats import Export, Proof
from objectives.export.manifest import Manifest
from objectives.export.writing import write_model
from objectives.progress import silent
from objectives.scoring import Score
from objectives.trial import Bench, run_trial
from quant.plan import Plan
from quant.setting import Setting
from storage.errors import StorageError
from tests.objectives import tiny

AWQ = Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=5)
PLAN = Plan.uniform(AWQ)
TEXT = tiny.sequences([20] * 10, seed=2)
NAMES = ("compressed-tensors", "gptq", "awq")
Change = Callable[[Score], Tensor]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return tiny.bench(tiny.complete(dtype=torch.bfloat16), tmp_path / "home")


def computing_otherwise(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a runtime with other kernels: `change` is added to what each sequence loses."""
    rescore = writing.rescore

    def otherwise(*arguments: Any) -> Any:
        made = rescore(*arguments)
        return {
            place: replace(reloaded, score=replace(reloaded.score, nll=reloaded.score.nll + change(reloaded.score)))
            for place, reloaded in made.items()
        }

    monkeypatch.setattr(writing, "rescore", otherwise)


def write(bench: Bench, target: Path, proof: Proof | None = None) -> Mapping[str, Manifest]:
    directories = {name: target / name for name in NAMES}
    proof = proof or Proof(text=TEXT, perplexity=None)
    return write_model(Export(bench=bench, plan=PLAN, directories=directories, proof=proof), silent)


def scattered(score: Score) -> Tensor:
    """.15 % of perplexity on average, in both directions."""
    signs = torch.tensor([1.0, -1.0] * 5, dtype=torch.float64)
    return score.tokens * (0.0015 + 0.005 * signs)


def shifted(score: Score) -> Tensor:
    """.15 % of perplexity everywhere."""
    return score.tokens * torch.full((10,), 0.0015, dtype=torch.float64)


@pytest.mark.usefixtures("same_process")
def test_what_scatters_by_more_than_it_is_apart_is_the_runtimes_arithmetic(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a thousandth, with all codes equal, it is accepted, and the noise stands in manifest and notes."""
    computing_otherwise(scattered, monkeypatch)
    manifest = write(bench, tmp_path / "models")["awq"]
    proof = manifest.proof
    assert proof is not None
    assert proof.packed / proof.measured - 1 == pytest.approx(0.0015, rel=0.01)
    assert proof.noise == pytest.approx(0.00377, rel=0.01)
    [note] = manifest.notes
    assert note.endswith(
        "computes a perplexity that is +0.15% from what was measured, by the same codes; that is within the scatter of "
        "its roundings, 0.38%"
    )


@pytest.mark.usefixtures("same_process")
def test_what_is_apart_everywhere_is_no_noise(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anything where nothing is known of sequences."""
    computing_otherwise(shifted, monkeypatch)
    with pytest.raises(RunError, match=r"\(\+0\.15%, at most 0\.10% is allowed\); nothing was written"):
        write(bench, tmp_path / "models")
    computing_otherwise(lambda score: scattered(score) - shifted(score), monkeypatch)
    measured = run_trial(bench, PLAN, TEXT).score
    assert measured is not None
    with pytest.raises(RunError, match=r"\(\+0\.15%, at most 0\.10% is allowed\); nothing was written"):
        write(bench, tmp_path / "models", Proof(text=TEXT, perplexity=measured.perplexity))
    write(bench, tmp_path / "models", Proof(text=TEXT, perplexity=measured.perplexity, score=measured))


@pytest.mark.usefixtures("same_process")
def test_a_directory_that_somebody_fills_meanwhile_leaves_none_of_the_formats(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While they are scored; what was filled stays."""
    rescore, models = writing.rescore, tmp_path / "models"
    models.mkdir()
    (models / "kept").write_text("precious")

    def filled(*arguments: Any) -> Any:
        (models / "awq").mkdir()
        (models / "awq" / "theirs").write_text("theirs")
        return rescore(*arguments)

    monkeypatch.setattr(writing, "rescore", filled)
    with pytest.raises(StorageError, match="awq exists already"):
        write(bench, models)
    assert sorted(path.name for path in models.rglob("*")) == ["awq", "kept", "theirs"]


def test_room_is_needed_for_all_formats_before_anything_is_computed(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that has it for two of three is refused."""
    one = 32 * 2**20
    monkeypatch.setattr("storage.files.shutil.disk_usage", lambda _: type("Usage", (), {"free": 5 * one // 2}))
    with pytest.raises(StorageError, match=r"MB free and 10. MB are needed"):
        write(bench, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_zeros_of_both_signs_are_equal_and_nothing_else_is(tmp_path: Path) -> None:
    """Of a negative scale code zero is a zero of the other sign."""
    (tmp_path / "config.json").write_text("{}")
    module = torch.nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)

    def digest(value: float) -> str:
        with torch.no_grad():
            module.weight.zero_()[0, 0] = value
        return loaded_digests(module, tmp_path, torch.bfloat16)["weight"]

    assert digest(0.0) == digest(-0.0)
    assert digest(0.0) != digest(1e-30)
    assert digest(1.0) != digest(1.0078125)
