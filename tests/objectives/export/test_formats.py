"""Every format in the registry writes a directory that scores what was measured."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from objectives.errors import InputError
from objectives.export.formats import FORMATS, Export, Proof, find_format
from objectives.export.manifest import Manifest
from objectives.export.reading import load_directory
from objectives.export.rescoring import rescore
from objectives.export.writing import write_model
from objectives.progress import silent
from objectives.scoring import score_all
from objectives.trial import Bench, run_trial
from quant.plan import Plan
from quant.setting import Setting
from tests.objectives import tiny

AWQ = Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=5)
TEXT = tiny.sequences([20] * 10, seed=2)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return tiny.bench(tiny.complete(dtype=torch.bfloat16), tmp_path / "home")


def with_words(tmp_path: Path) -> Bench:
    """A bench whose model has as many tokens as its tokenizer, which GGUF asks for."""
    model, config = tiny.complete(), tiny.LAYOUTS["llama"]()
    config.vocab_size = len(model.tokenizer)
    return tiny.bench(replace(tiny.model(config, dtype=torch.bfloat16), tokenizer=model.tokenizer), tmp_path / "home")


def written(name: str, bench: Bench, plan: Plan, target: Path) -> Manifest:
    proof = Proof(text=TEXT, perplexity=None)
    return write_model(Export(bench=bench, plan=plan, directories={name: target}, proof=proof), silent)[name]


# In a fresh process each, which takes seconds: the next test shows the same in this one.
@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_what_a_format_wrote_scores_what_was_measured(name: str, tmp_path: Path) -> None:
    """Loaded as the format loads it; the model in memory is as it was."""
    if name.startswith("gguf"):
        pytest.importorskip("gguf")
    bench = with_words(tmp_path)
    form, plan, before = find_format(name), Plan.uniform(AWQ), tiny.state(bench.model.module)
    form.require_holds(plan)
    form.require_holds(plan, bench)
    manifest = written(name, bench, plan, tmp_path / "out")
    assert (manifest.weights, manifest.method) == (name, "gw-awq")
    expected = run_trial(bench, plan, TEXT).score
    found = rescore({tmp_path / "out": form.loader()}, TEXT, bench.model, silent)[tmp_path / "out"].score
    measured = expected.perplexity if name != "gguf-q8" else manifest.proof.measured
    assert found.perplexity == pytest.approx(measured, rel=1e-6)
    assert tiny.same_bits(before, tiny.state(bench.model.module))


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("name", ["dense", "compressed-tensors"])
def test_a_format_holds_linears_of_different_settings(name: str, bench: Bench, tmp_path: Path) -> None:
    """The manifest lists each setting with its Linears."""
    fine = [linear.name for linear in bench.blocks[0].linears]
    plan = Plan(named=dict.fromkeys(fine, AWQ), others=replace(AWQ, group_size=64))
    form = find_format(name)
    manifest = written(name, bench, plan, tmp_path / "out")
    assert manifest.method == "mixed"
    assert [(each.parameters["group_size"], len(each.linears)) for each in manifest.settings] == [(64, 7), (32, 7)]
    assert manifest.settings[1].linears == tuple(fine)
    found = score_all(load_directory(form.loader(), tmp_path / "out", torch.bfloat16).eval(), TEXT, "", silent)
    assert found.perplexity == pytest.approx(run_trial(bench, plan, TEXT).score.perplexity, rel=1e-6)


def test_an_unknown_format_is_refused_with_those_there_are() -> None:
    """In one line."""
    with pytest.raises(InputError, match="format 'exl2' is unknown; choose dense or compressed-tensors"):
        find_format("exl2")


def test_listing_formats_costs_no_time() -> None:
    """A command line that lists them does not load torch."""
    check = "import sys, objectives.export.formats as f; f.formats_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
