"""Experts that saw few tokens lean on what all experts of their block saw."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from objectives.calibration import shrinking
from objectives.calibration.entries import with_packed_grams
from objectives.calibration.recording import BlockStatistics, record
from objectives.calibration.shrinking import shrunk_inputs, shrunk_outputs
from objectives.model.finding import find_blocks
from objectives.model.roles import Block
from objectives.progress import silent
from objectives.results import measurement_key
from objectives.trial import run_trial
from quant.plan import Plan
from quant.setting import Setting
from quant.statistics import pack_symmetric, unpack_symmetric
from tests.objectives import tiny
from tests.objectives.tiny import EXPERTS, HIDDEN, MIXTURES, MLP

AWQ = Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=5)
NAME = "model.layers.1.mlp.experts"


def recorded() -> tuple[Block, BlockStatistics]:
    """The last block of a mixture, and statistics of which one expert saw nothing and another all but nothing."""
    module = tiny.module(MIXTURES["mixtral"]())
    block = find_blocks(module)[-1]
    (statistics,) = record(module, [block], tiny.sequences([24, 17, 24, 9]), lambda count: None)
    inputs, outputs = dict(statistics.inputs), dict(statistics.outputs)
    for number, tokens in ((1, 0), (2, 1)):
        for names, means in ((("gate+up", "down"), inputs), (("gate_proj", "up_proj", "down_proj"), outputs)):
            for name in names:
                key = f"{NAME}.{number}{':' if means is inputs else '.'}{name}"
                zero = {"gram": torch.zeros_like(means[key].gram)} if means is inputs and not tokens else {}
                means[key] = replace(means[key], tokens=tokens, **zero)
    return block, with_packed_grams(BlockStatistics(inputs=inputs, outputs=outputs))


@pytest.mark.parametrize(("site", "width"), [("gate+up", HIDDEN), ("down", MLP)])
def test_the_formula(site: str, width: int) -> None:
    """`n/(n + κ)` of an expert's own matrix and the rest of the pool's, in which an expert counts by its tokens."""
    block, statistics = recorded()
    own = [statistics.inputs[f"{NAME}.{number}:{site}"] for number in range(EXPERTS)]
    tokens = [inputs.tokens for inputs in own]
    grams = [unpack_symmetric(inputs.gram).double() for inputs in own]
    pool = sum(count * gram for count, gram in zip(tokens, grams, strict=True)) / sum(tokens)
    if site == "down":
        pool = torch.eye(width, dtype=torch.float64) * pool.trace() / width
    shrunk = shrunk_inputs(block, statistics.inputs)
    for number, inputs in enumerate(own):
        kappa = shrinking.KAPPA_PER_INPUT * width
        share = inputs.tokens / (inputs.tokens + kappa)
        expected = share * grams[number] + (1 - share) * pool
        result = shrunk[f"{NAME}.{number}:{site}"]
        torch.testing.assert_close(unpack_symmetric(result.gram), expected.float(), rtol=1e-5, atol=1e-8)
        assert result.tokens == inputs.tokens
    unseen = unpack_symmetric(shrunk[f"{NAME}.1:{site}"].gram)
    torch.testing.assert_close(unseen, pool.float(), rtol=1e-5, atol=1e-8)


def test_hidden_neurons_may_be_numbered_as_one_likes() -> None:
    """Those of one expert in another order: its matrix is in that order, and those of the others are as they were."""
    block, statistics = recorded()
    order = torch.randperm(MLP, generator=torch.Generator().manual_seed(3))
    name, inputs = f"{NAME}.0:down", dict(statistics.inputs)
    gram = unpack_symmetric(inputs[name].gram)[order][:, order]
    inputs[name] = replace(inputs[name], gram=pack_symmetric(gram), magnitude=inputs[name].magnitude[order])
    before, after = shrunk_inputs(block, statistics.inputs), shrunk_inputs(block, inputs)
    expected = unpack_symmetric(before[name].gram)[order][:, order]
    torch.testing.assert_close(unpack_symmetric(after[name].gram), expected)
    torch.testing.assert_close(after[name].magnitude, before[name].magnitude[order])
    for other in (f"{NAME}.{number}:down" for number in range(1, EXPERTS)):
        torch.testing.assert_close(after[other].gram, before[other].gram)


def test_outputs_are_shrunk_as_inputs_are() -> None:
    """Importances of an expert that saw nothing are those of the pool, of hidden neurons their mean, role by role."""
    block, statistics = recorded()
    shrunk = shrunk_outputs(block, statistics.outputs)
    for role in ("gate", "up", "down"):
        own = [statistics.outputs[f"{NAME}.{number}.{role}_proj"] for number in range(EXPERTS)]
        tokens = sum(outputs.tokens for outputs in own)
        pool = sum(outputs.tokens * outputs.magnitude.double() for outputs in own) / tokens
        unseen = shrunk[f"{NAME}.1.{role}_proj"]
        expected = pool if role == "down" else pool.mean().expand_as(pool)
        torch.testing.assert_close(unseen.magnitude, expected.float(), rtol=1e-5, atol=1e-8)


def test_what_every_token_reaches_is_left_as_it_is() -> None:
    """Attention, dense MLPs and shared experts are no experts of a pool."""
    block, statistics = recorded()
    inputs, outputs = shrunk_inputs(block, statistics.inputs), shrunk_outputs(block, statistics.outputs)
    for site in block.sites:
        if site.pool is None:
            assert inputs[site.name] is statistics.inputs[site.name]
            assert all(outputs[linear.name] is statistics.outputs[linear.name] for linear in site.linears)


def test_kappa_changes_what_is_measured_and_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another κ gives other weights from the same cache, and no result of one is taken for one of the other."""
    bench = tiny.bench(tiny.model(MIXTURES["mixtral"]()), tmp_path)
    text, plan = tiny.sequences([20, 31, 8], seed=2), Plan.uniform(AWQ)
    first, key = run_trial(bench, plan, text), measurement_key(bench, plan, text)
    monkeypatch.setattr(shrinking, "KAPPA_PER_INPUT", 0.0)
    assert bench.calibration.ensure([8], silent) == 0
    second = run_trial(bench, plan, text)
    assert not torch.equal(first.score.nll, second.score.nll)
    assert measurement_key(bench, plan, text) != key


def test_an_expert_without_tokens_is_quantized_as_well(tmp_path: Path) -> None:
    """A text that reaches one token of one expert, and of the others none, is enough for a trial."""
    model = tiny.model(MIXTURES["mixtral"]())
    bench = tiny.bench(model, tmp_path)
    for layer in model.module.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _, args, out: (out[0], out[1], out[2] * 0))
    result = run_trial(bench, Plan.uniform(replace(AWQ, method="gwh-praq-v2")), tiny.sequences([20, 31, 8], seed=2))
    assert result.outcome == "complete"
