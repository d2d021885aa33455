"""A format that is registered is written like any other, and no code has to know it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch

import cli
from hpo.deploy.deploy import Chosen, deploy
from hpo.deploy.model_card import model_card
from objectives.errors import InputError
from objectives.evaluation import BenchPlan
from objectives.export.formats import FORMATS, Export, RegisteredFormat
from objectives.export.manifest import Manifest, ProvenScore, make_manifest, write_manifest
from objectives.model.loading import Model, ModelPlan
from objectives.model.roles import Block
from objectives.progress import Progress, silent
from objectives.scoring import Score, score_all
from objectives.text.sequences import Sequences, TextPlan
from objectives.trial import quantized
from quant.plan import Plan
from quant.setting import Setting
from storage.model_directory import new_directory
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

    def require_holds(self, blocks: Sequence[Block], plan: Plan) -> None:
        if any(setting.group_size == 32 for setting in plan.settings):
            raise InputError("one file cannot hold groups of 32")

    def write(self, export: Export, progress: Progress) -> Manifest:
        proof = export.proof
        assert proof is not None
        with quantized(export.bench, export.plan, progress) as result, new_directory(export.directory) as place:
            state = {name: tensor.clone() for name, tensor in export.bench.model.module.state_dict().items()}
            safetensors.torch.save_file(state, place / "weights.safetensors")
            measured = score_all(export.bench.model.module, proof.text, "", progress).perplexity
        reloaded = self.score(export.directory, proof.text, export.bench.model, progress).perplexity
        manifest = replace(
            make_manifest(export.bench, export.plan, result.layers, weights="one-file"),
            proof=ProvenScore(
                source=proof.text.source,
                sequences=len(proof.text),
                measured=measured,
                unfolded=measured,
                packed=reloaded,
            ),
        )
        write_manifest(export.directory, manifest)
        return manifest

    def score(
        self, directory: Path, text: Sequences, model: Model, progress: Progress, trust_remote_code: bool = False
    ) -> Score:
        before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
        model.module.load_state_dict(safetensors.torch.load_file(directory / "weights.safetensors"))
        try:
            return score_all(model.module, text, "", progress)
        finally:
            model.module.load_state_dict(before)

    def notes(self, blocks: Sequence[Block]) -> list[str]:
        return [f"{len(blocks)} blocks in one file"]


@pytest.fixture
def one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "one-file", RegisteredFormat(summary="all tensors in one file", load=OneFile))


@pytest.mark.usefixtures("one_file")
def test_a_format_that_is_registered_is_written(tmp_path: Path) -> None:
    """It is given what its result has to score, proves it, and what it has to say is passed on."""
    target = tmp_path / "out"
    written = deploy(BENCH, Chosen(plan=Plan.uniform(RTN)), target, "one-file", Paths(tmp_path / "home"), silent)
    assert written.manifest.proof is not None
    assert written.manifest.proof.packed == written.manifest.proof.measured
    assert written.disk_bytes == sum(path.stat().st_size for path in target.iterdir())
    assert any("blocks in one file" in note for note in written.notes)


class FellBack(OneFile):
    """Its first Linear kept nearest rounding."""

    def write(self, export: Export, progress: Progress) -> Manifest:
        manifest = super().write(export, progress)
        first, *others = manifest.layers
        return replace(manifest, layers=(replace(first, fell_back=True), *others))


def test_linears_that_kept_nearest_rounding_are_noted_and_stand_in_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `evaluate` names them; a card without such Linears says nothing."""
    monkeypatch.setitem(FORMATS, "one-file", RegisteredFormat(summary="all tensors in one file", load=FellBack))
    written = deploy(
        BENCH, Chosen(plan=Plan.uniform(RTN)), tmp_path / "out", "one-file", Paths(tmp_path / "home"), silent
    )
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
        deploy(BENCH, chosen, tmp_path / "out", "one-file", Paths(tmp_path / "home"), silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("one_file")
def test_the_help_of_the_command_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody has to say it twice; and an unknown one is refused with all there are."""
    with pytest.raises(SystemExit):
        cli.main(["quantize", "--help"])
    assert "one-file" in capsys.readouterr().out
    assert cli.main(["quantize", "--method", "rtn", "--format", "gguf", "--output-dir", "out"]) == 2
    assert "format 'gguf' is unknown; choose dense or packed or one-file" in capsys.readouterr().err
