"""Refining a model whose blocks are in memory only while they are used gives what refining it in memory gives."""

import weakref
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from objectives.bundled.text import MODEL_DIRECTORY
from objectives.calibration.calibration import Calibration
from objectives.model.finding import decoder_layers, find_blocks
from objectives.model.loading import Model, ModelPlan, load_model
from objectives.model.streaming import StreamedWeights
from objectives.progress import silent
from objectives.refined import Refined
from objectives.refinement.options import RefinementOptions, RefinementText
from objectives.refinement.refine import refine
from objectives.text.sequences import Sequences
from objectives.trial import Bench, run_trial
from quant.plan import Plan
from quant.setting import Setting
from storage.cache import TensorCache
from storage.paths import Paths
from storage.results import ResultStore
from tests.objectives import tiny
from tests.objectives.calibration.workers import text_of

PLAN = Plan.uniform(Setting(method="gw-awq", group_size=32, symmetric=False, n_calib=8, n_grid=3))
CALIBRATION = tiny.sequences([24, 17, 24, 9, 31, 24, 2, 12], seed=1)
TEXT = RefinementText(training=tiny.sequences([16] * 8, seed=3), validation=tiny.sequences([16] * 4, seed=4))
OPTIONS = RefinementOptions(rate=1e-2, batch_tokens=64, passes=2, code_steps=0)


def loaded(name: str, home: Path, dtype: str, streamed: bool) -> Model:
    """The model, with room for two blocks beside its embeddings where it is to be streamed."""
    if not streamed:
        return load_model(ModelPlan(name=name, dtype=dtype))
    module = load_model(ModelPlan(name=name)).module
    blocks = [sum(parameter.numel() for parameter in layer.parameters()) for layer in decoder_layers(module)[1]]
    whole = sum(parameter.numel() for parameter in module.parameters())
    memory = (whole - sum(blocks) + 2 * max(blocks)) * getattr(torch, dtype).itemsize
    model = load_model(ModelPlan(name=name, dtype=dtype, device_memory=memory, offload=str(home / "offload")))
    assert model.weights.streamed
    return model


def refined_in(
    model: Model,
    home: Path,
    options: RefinementOptions,
    text: RefinementText = TEXT,
    calibration: Sequences = CALIBRATION,
) -> tuple[Refined, str | None, list[float]]:
    """What refining gives, and the weights and scores of a trial with it."""
    blocks = find_blocks(model.module, allow_partial=True, weights=model.weights)
    made = Calibration(model, blocks, calibration, TensorCache(Paths(home)))
    bench = Bench(model=model, blocks=blocks, calibration=made)
    refined = refine(bench, PLAN, text, options, ResultStore(Paths(home).results), silent)
    result = run_trial(replace(bench, refined=refined), PLAN, text.validation)
    assert result.score is not None
    return refined, result.fingerprint, result.score.nll.tolist()


def assert_same(
    first: tuple[Refined, str | None, list[float]], second: tuple[Refined, str | None, list[float]]
) -> None:
    for own, other in ((first[0].scales, second[0].scales), (first[0].vectors, second[0].vectors)):
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)
    assert first[0].moves.keys() == second[0].moves.keys()
    assert all(torch.equal(first[0].moves[name], second[0].moves[name]) for name in first[0].moves)
    assert first[0].key == second[0].key
    assert first[0].refinement == second[0].refinement
    assert first[1:] == second[1:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "code_steps"),
    [
        *product(["qwen2", "gemma2", "opt", "gpt-neox"], [0, 4]),
        *product(["mixtral", "qwen2-moe", "deepseek-v3"], [0]),
    ],
)
def test_refining_block_by_block_gives_the_same_bits(layout: str, code_steps: int, tmp_path: Path) -> None:
    """Scales, norms, biases, codes that moved, looks and scores are those of the model in memory, of mixtures too."""
    path = tmp_path / "model"
    tiny.module({**tiny.LAYOUTS, **tiny.MIXTURES}[layout](), dtype=torch.bfloat16).save_pretrained(path)
    AutoTokenizer.from_pretrained(MODEL_DIRECTORY).save_pretrained(path)
    options = replace(OPTIONS, code_steps=code_steps)
    model = loaded(str(path), tmp_path, "bfloat16", streamed=True)
    parts = refined_in(model, tmp_path / "parts", options)
    whole = refined_in(loaded(str(path), tmp_path, "bfloat16", streamed=False), tmp_path / "whole", options)
    assert_same(parts, whole)
    assert parts[0].vectors
    assert len({look.kl for look in parts[0].refinement.looks}) == len(parts[0].refinement.looks)
    assert (parts[0].refinement.moves is not None) == (code_steps > 0)
    weights = {name for name, parameter in model.module.named_parameters() if ".layers." in name and parameter.is_meta}
    assert weights == {name for name, _ in model.module.named_parameters() if ".layers." in name}


@pytest.mark.slow
def test_the_bundled_model_is_refined_block_by_block(tmp_path: Path) -> None:
    """Real weights and text: what is held back gets nearer, by the same bits either way."""
    name = ModelPlan().name
    model = loaded(name, tmp_path, "float32", streamed=True)
    text = text_of(model.tokenizer)
    held = RefinementText(training=text[:6], validation=text[6:])
    options = replace(OPTIONS, rate=RefinementOptions.rate, passes=1, code_steps=2, code_drift=0.05)
    parts = refined_in(model, tmp_path / "parts", options, held, text)
    whole = refined_in(loaded(name, tmp_path, "float32", streamed=False), tmp_path / "whole", options, held, text)
    assert_same(parts, whole)
    refinement = parts[0].refinement
    assert refinement.moves is not None
    assert refinement.moves.kept
    assert min(look.kl for look in refinement.looks) < refinement.moves.before


@pytest.mark.slow
def test_refining_holds_one_block_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the way there and on the way back no weight of a block outlives its use, as a graph would have it."""
    config = tiny.LAYOUTS["llama"]()
    config.num_hidden_layers = 5
    tiny.module(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(MODEL_DIRECTORY).save_pretrained(tmp_path / "model")
    model = loaded(str(tmp_path / "model"), tmp_path, "bfloat16", streamed=True)
    brought: dict[str, weakref.ref[torch.Tensor]] = {}
    most = 0
    usual = StreamedWeights._bring

    def counted(weights: StreamedWeights, block: str) -> None:
        nonlocal most
        usual(weights, block)
        brought[block] = weakref.ref(model.module.get_submodule(block).mlp.down_proj.weight)
        most = max(most, sum(kept() is not None for kept in brought.values()))

    monkeypatch.setattr(StreamedWeights, "_bring", counted)
    refined_in(model, tmp_path / "parts", replace(OPTIONS, code_steps=2))
    assert len(brought) == 5
    assert most == 1
