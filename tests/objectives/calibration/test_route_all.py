"""Every token through every expert, for statistics only: other codes, other keys, the same model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from objectives.calibration.calibration import Calibration
from objectives.calibration.recording import record
from objectives.calibration.shrinking import of_all_tokens
from objectives.errors import InputError
from objectives.model.finding import find_blocks
from objectives.progress import silent
from objectives.results import measurement_key
from objectives.suitability import require_experts
from objectives.trial import quantized
from quant.plan import Plan
from quant.setting import Setting
from storage.cache import TensorCache
from storage.paths import Paths
from tests.objectives import tiny
from tests.objectives.tiny import EXPERTS, HIDDEN, MIXTURES

PLAN = Plan.uniform(Setting(method="gw-awq", rounding="gptq", group_size=32, n_calib=8, n_grid=5))
TEXT = tiny.sequences([20, 31, 8], seed=2)
STARVED = "model.layers.1.mlp.experts.3.gate_proj"


def codes(directory: Path, route_all: bool) -> dict[str, Tensor]:
    """The codes of a mixture whose last expert is sent nothing, but for what the router says of the others."""
    model = tiny.model(MIXTURES["mixtral"]())
    for layer in model.module.model.layers:
        layer.mlp.gate.register_forward_hook(
            lambda _, args, out: (out[0], out[1], torch.where(out[2] == EXPERTS - 1, 0, out[2]))
        )
    bench = tiny.bench(model, directory, route_all=route_all)
    with quantized(bench, PLAN, with_codes=True) as made:
        assert {layer.name: layer.tokens for layer in made.layers}[STARVED] == 0
        return {name: weight.codes.clone() for name, weight in made.codes.items()}


def test_it_changes_the_codes_of_a_starved_expert(tmp_path: Path) -> None:
    """Whose `down` knew of other experts' hidden neurons alone; what reads every token anyway is left as it is."""
    own, every = codes(tmp_path, False), codes(tmp_path, True)
    down = STARVED.replace("gate_proj", "down_proj")
    assert not torch.equal(own[down], every[down])
    for name in own:
        if ".0.self_attn." in name:
            assert torch.equal(own[name], every[name])


def test_entries_and_results_have_keys_of_their_own(tmp_path: Path) -> None:
    """Neither is taken for the other, and both can lie in one cache."""
    model = tiny.model(MIXTURES["mixtral"]())
    own, every = (tiny.bench(model, tmp_path, route_all=route_all) for route_all in (False, True))
    assert own.calibration.first(8).key != every.calibration.first(8).key
    assert measurement_key(own, PLAN, TEXT) != measurement_key(every, PLAN, TEXT)
    assert measurement_key(own, None, TEXT) == measurement_key(every, None, TEXT)
    assert own.calibration.ensure([8], silent) == every.calibration.ensure([8], silent) == 8
    block = own.blocks[-1]
    site = block.experts[0].experts[0].gate.name.replace(".gate_proj", ":gate+up")
    grams = [bench.calibration.read(block, 8).inputs[site].gram for bench in (own, every)]
    assert not torch.equal(*grams)
    assert grams[0].shape == (HIDDEN, HIDDEN)


def test_what_every_expert_read_is_not_shrunk_and_counts_as_it_is_used(tmp_path: Path) -> None:
    """Statistics are those that were recorded; the tokens are those of the router."""
    model = tiny.model(MIXTURES["mixtral"]())
    bench = tiny.bench(model, tmp_path, route_all=True)
    bench.calibration.ensure([8], silent)
    block = bench.blocks[-1]
    (recorded,) = record(model.module, [block], bench.calibration.text[:8], lambda _: None, route_all=True)
    read, settled = bench.calibration.read(block, 8), of_all_tokens(block, recorded)
    for site in block.sites:
        torch.testing.assert_close(read.inputs[site.name].gram, recorded.inputs[site.name].gram)
        assert read.inputs[site.name].tokens == settled.inputs[site.name].tokens
        if site.pool is not None:
            assert read.inputs[site.name].tokens == recorded.routed[site.linears[0].owner]
            assert {read.outputs[linear.name].tokens for linear in site.linears} == {read.inputs[site.name].tokens}


def test_larger_sizes_extend_smaller_ones(tmp_path: Path) -> None:
    """What routers chose adds up as statistics do, in steps or at once."""
    model = tiny.model(MIXTURES["mixtral"]())
    text = tiny.sequences([24, 17, 9, 31] * 5, seed=1)
    blocks = find_blocks(model.module)
    calibration = Calibration(model, blocks, text, TensorCache(Paths(tmp_path)), route_all=True)
    calibration.ensure([20], silent)
    block = blocks[-1]
    (at_once,) = record(model.module, [block], text, lambda _: None, route_all=True)
    for site in block.sites:
        if site.pool is not None:
            read = calibration.read(block, 20).inputs[site.name]
            assert read.tokens == at_once.routed[site.linears[0].owner]
            torch.testing.assert_close(read.gram, at_once.inputs[site.name].gram, rtol=1e-4, atol=1e-6)


def test_a_model_without_experts_is_refused() -> None:
    """In one line, with what to do."""
    with pytest.raises(InputError) as caught:
        require_experts("org/name", [])
    assert str(caught.value) == "--route-all is for mixtures of experts, and org/name has no experts; leave it out"
    blocks = find_blocks(tiny.module(MIXTURES["mixtral"]()))
    require_experts("org/name", blocks)
    with pytest.raises(InputError):
        require_experts("org/name", [replace(block, experts=()) for block in blocks])
