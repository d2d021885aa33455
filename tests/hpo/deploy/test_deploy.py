"""A format that is registered is written like any other, and no code has to know it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch

import cli
from hpo.deploy.deploy import Chosen, deploy
from hpo.deploy.model_card import model_card
from objectives.budget import Budget
from objectives.errors import InputError
from objectives.evaluation import BenchPlan
from objectives.export.digests import measured_digests
from objectives.export.formats import FORMATS, RegisteredFormat, Stored
from objectives.export.manifest import Manifest, make_manifest
from objectives.export.rescoring import Reloaded
from objectives.model.loading import Model, ModelPlan
from objectives.model.roles import Block
from objectives.progress import Progress, silent
from objectives.scoring import score_all
from objectives.text.sequences import Sequences, TextPlan
from objectives.trial import Bench
from quant.plan import Plan
from quant.scheme import IntWeight
from quant.setting import Setting
from storage.paths import Paths

RTN = Setting(method="rtn", group_size=64, n_calib=4)
BENCH = BenchPlan(
    model=ModelPlan(name="bundled", dtype="float32"),
    calibration=TextPlan(source="bundled:topics", part="calibration", count=4, length=32),
    data=(TextPlan(source="bundled:topics", part="tuning", count=8, length=32),),
)


class OneFile:
    """A format of this test's own: all tensors in one file, and nothing with groups of 32."""

    proven = True

    limits = None

    def require_holds(self, plan: Plan, bench: Bench | None = None) -> None:
        if any(setting.group_size == 32 for setting in plan.settings):
            raise InputError("one file cannot hold groups of 32")

    def write(self, bench: Bench, plan: Plan, codes: Mapping[str, IntWeight], place: Path) -> Stored:
        state = {name: tensor.clone() for name, tensor in bench.model.module.state_dict().items()}
        safetensors.torch.save_file(state, place / "weights.safetensors")
        return Stored(linear_bytes=1000, notes=("one value was rounded",))

    def rounded(self, bench: Bench, plan: Plan, codes: object) -> None:
        return None

    def reader(self) -> str:
        return "safetensors"

    def loader(self) -> str:
        return "one-file"

    def notes(self, blocks: Sequence[Block]) -> list[str]:
        return [f"{len(blocks)} blocks in one file"]


def scored_here(
    loaders: Mapping[Path, str], text: Sequences, model: Model, progress: Progress, trust_remote_code: bool = False
) -> dict[Path, Reloaded]:
    """Score what that format wrote in the model that is here."""
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    reloaded = {}
    try:
        for directory, loader in loaders.items():
            assert loader == "one-file"
            model.module.load_state_dict(safetensors.torch.load_file(directory / "weights.safetensors"))
            score = score_all(model.module, text, "", progress)
            reloaded[directory] = Reloaded(score=score, digests=measured_digests(model))
    finally:
        model.module.load_state_dict(before)
    return reloaded


@pytest.fixture
def one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objectives.export.writing.rescore", scored_here)
    monkeypatch.setitem(FORMATS, "one-file", RegisteredFormat(summary="all tensors in one file", load=OneFile))


@pytest.mark.usefixtures("one_file")
def test_a_format_that_is_registered_is_written(tmp_path: Path) -> None:
    """It is given what its result has to score, proves it, and what it has to say is passed on."""
    target = tmp_path / "out"
    written = deploy(BENCH, Chosen(plan=Plan.uniform(RTN)), {"one-file": target}, Paths(tmp_path / "home"), silent)[
        "one-file"
    ]
    assert written.manifest.proof is not None
    assert written.manifest.proof.packed == written.manifest.proof.measured
    assert written.disk_bytes == sum(path.stat().st_size for path in target.iterdir())
    assert any("blocks in one file" in note for note in written.notes)
    assert written.notes[-1] == "one value was rounded"
    assert written.manifest.proof.reader == "safetensors"


@pytest.mark.usefixtures("one_file")
def test_linears_that_kept_nearest_rounding_are_noted_and_stand_in_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `evaluate` names them; a card without such Linears says nothing."""

    def fell_back(*arguments: Any, **named: Any) -> Manifest:
        manifest = make_manifest(*arguments, **named)
        first, *others = manifest.layers
        return replace(manifest, layers=(replace(first, fell_back=True), *others))

    monkeypatch.setattr("objectives.export.writing.make_manifest", fell_back)
    written = deploy(
        BENCH, Chosen(plan=Plan.uniform(RTN)), {"one-file": tmp_path / "out"}, Paths(tmp_path / "home"), silent
    )["one-file"]
    [note] = [note for note in written.notes if note.startswith("1 Linears kept nearest rounding, ")]
    manifest = replace(written.manifest, stored_bits_per_weight=4.25)
    assert f"\n{note}.\n" in model_card(manifest, Plan.uniform(RTN))
    as_asked = [replace(layer, fell_back=False) for layer in manifest.layers]
    assert "kept nearest rounding" not in model_card(replace(manifest, layers=tuple(as_asked)), Plan.uniform(RTN))


@pytest.mark.usefixtures("one_file")
def test_what_a_format_cannot_hold_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the setting alone."""
    monkeypatch.setattr("hpo.deploy.deploy.load_bench", lambda *_: pytest.fail("a model was loaded"))
    chosen = Chosen(plan=Plan.uniform(Setting(method="rtn", group_size=32)))
    with pytest.raises(InputError, match="one file cannot hold groups of 32"):
        deploy(BENCH, chosen, {"one-file": tmp_path / "out"}, Paths(tmp_path / "home"), silent)
    assert not (tmp_path / "out").exists()


def test_a_budget_whose_plans_may_not_be_split_is_refused_before_a_site_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four devices leave 64 inputs of o to each, and the budget may give it groups of 128."""
    monkeypatch.setattr("hpo.deploy.deploy.allocate", lambda *_: pytest.fail("sites were measured"))
    chosen, target = Chosen(plan=Plan.uniform(RTN), budget=Budget(bits_per_weight=5)), tmp_path / "out"
    with pytest.raises(
        InputError, match=r"groups of 128 do not divide the 256 inputs of .* split over 4 devices; give"
    ):
        deploy(BENCH, chosen, {"compressed-tensors": target}, Paths(tmp_path / "home"), silent, devices=4)
    assert not target.exists()


@pytest.mark.usefixtures("same_process")
def test_a_plan_that_was_kept_is_judged_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a study measured has groups of 64 throughout, which four devices can split; others of its budget may not."""
    monkeypatch.setattr("hpo.deploy.deploy.kept_plan", lambda *_: Plan.uniform(RTN))
    measured: Any = SimpleNamespace(perplexity=None)
    chosen = Chosen(plan=Plan.uniform(RTN), budget=Budget(bits_per_weight=5), measured=measured)
    directories = {"compressed-tensors": tmp_path / "out"}
    [written] = deploy(BENCH, chosen, directories, Paths(tmp_path / "home"), silent, devices=4).values()
    assert written.plan == Plan.uniform(RTN)


@pytest.mark.usefixtures("one_file")
def test_the_help_of_the_command_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody has to say it twice; and an unknown one is refused with all there are."""
    with pytest.raises(SystemExit):
        cli.main(["quantize", "--help"])
    assert "one-file" in capsys.readouterr().out
    assert cli.main(["quantize", "--method", "rtn", "--format", "exl2", "--output-dir", "out"]) == 2
    assert (
        "format 'exl2' is unknown; choose dense or compressed-tensors or gptq or awq or gguf or gguf-q8 or mlx "
        "or one-file" in capsys.readouterr().err
    )
