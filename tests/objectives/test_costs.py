"""What a study would cost, counted from shapes: as much as it then takes."""

from pathlib import Path

import pytest
from torch import nn

from objectives.costs import count
from objectives.errors import InputError
from objectives.model.finding import find_blocks, named_blocks
from objectives.model.loading import ModelPlan
from objectives.model.roles import Block
from objectives.model.skeleton import load_skeleton
from objectives.progress import silent
from quant.setting import Setting
from tests.objectives import tiny

SETTING = Setting(method="gw-awq", n_grid=10, n_calib=8, group_size=32)


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_blocks_are_named_as_they_are_found(layout: str) -> None:
    """Running a block says what folds; which Linears it has, their shapes and sites are in the names."""
    module = tiny.module(tiny.LAYOUTS[layout]())

    def shape(blocks: list[Block]) -> list[object]:
        return [
            (site.name, site.inputs, [(linear.name, linear.shape) for linear in site.linears])
            for block in blocks
            for site in block.sites
        ]

    named = named_blocks(module)
    assert shape(named) == shape(find_blocks(module))
    assert not any(site.folds for block in named for site in block.sites)


def test_a_skeleton_has_no_data(tmp_path: Path) -> None:
    """Of the model's files `config.json` is enough, and no tensor is filled."""
    tiny.LAYOUTS["llama"]().save_pretrained(tmp_path)
    module, blocks = load_skeleton(ModelPlan(name=str(tmp_path)))
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    assert len(blocks) == tiny.LAYERS


def test_entries_take_the_bytes_that_were_counted(tmp_path: Path) -> None:
    """Beside headers and vectors an entry of the cache is as large as its Gram matrices."""
    bench = tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path)
    costs = count(bench.model.module, bench.blocks, SETTING, 1, 1)
    bench.calibration.ensure({SETTING.n_calib}, silent)
    sizes = [entry.size for entry in bench.calibration.cache.entries()]
    assert len(sizes) == costs.entries == 1
    assert all(costs.entry_bytes < size < 1.6 * costs.entry_bytes for size in sizes)


def test_operations_are_those_of_the_products() -> None:
    """One block by hand: q, k, v, o, gate, up and down of a llama, on seven calibration and five scored tokens."""
    config = tiny.LAYOUTS["llama"]()
    config.num_hidden_layers = 1
    module = tiny.module(config)
    hidden, mlp, values = tiny.HIDDEN, tiny.MLP, tiny.KV_HEADS * tiny.HEAD
    weights = 2 * hidden**2 + 2 * hidden * values + 3 * hidden * mlp
    costs = count(module, named_blocks(module), SETTING, 7, 5)
    assert costs.weights == weights
    assert costs.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert costs.calibrating == 2 * 7 * (weights + 3 * hidden**2 + mlp**2)
    assert costs.scoring == 2 * 5 * (weights + 2 * hidden * tiny.VOCABULARY)
    product = (hidden + 2 * values + hidden + 2 * mlp) * hidden**2 + hidden * mlp**2
    assert costs.quantizing == (10 + 1 + 2) * product


@pytest.mark.parametrize("layout", ["mixtral", "qwen3-moe", "gpt-oss"])
def test_a_token_meets_the_experts_that_it_is_routed_to(layout: str) -> None:
    """Another expert for each token costs as much as its weights; more experts to choose from cost nothing."""

    def scoring(chosen: int, experts: int) -> float:
        config = tiny.MIXTURES[layout]()
        config.num_hidden_layers, config.num_experts_per_tok = 1, chosen
        setattr(config, "num_experts" if hasattr(config, "num_experts") else "num_local_experts", experts)
        module = tiny.module(config)
        return count(module, named_blocks(module), SETTING, 1, 1).scoring

    inner = tiny.MLP if layout != "qwen3-moe" else tiny.EXPERT_MLP
    assert scoring(2, 4) - scoring(1, 4) == pytest.approx(2 * 3 * tiny.HIDDEN * inner)
    assert scoring(2, 8) == scoring(2, 4)


def test_every_token_through_every_expert_costs_what_they_compute() -> None:
    """Two of four experts read a token, or all four: their weights once more, and their Gram matrices."""
    module = tiny.module(tiny.MIXTURES["mixtral"]())
    blocks = named_blocks(module)
    some, every = (count(module, blocks, SETTING, 1, 1, route_all).calibrating for route_all in (False, True))
    of_one = 3 * tiny.HIDDEN * tiny.MLP + tiny.HIDDEN**2 + tiny.MLP**2
    assert every - some == pytest.approx(2 * tiny.LAYERS * 2 * of_one)


def test_gptq_costs_its_factor_and_one_more_product() -> None:
    """What spreads errors over the inputs is counted beside the search."""
    module = tiny.module(tiny.LAYOUTS["llama"]())
    blocks = named_blocks(module)
    factors = sum(site.inputs**3 for block in blocks for site in block.sites)
    plain = count(module, blocks, SETTING, 1, 1).quantizing
    rounded = count(module, blocks, Setting(**{**SETTING.as_dict(), "rounding": "gptq"}), 1, 1).quantizing
    assert rounded - plain == pytest.approx(plain / 13 + factors)


def test_a_model_without_attention_heads_is_refused() -> None:
    """A layout that is not known is not counted wrongly."""
    with pytest.raises(InputError, match=r"decoder blocks|attention heads"):
        named_blocks(_Headless())


class _Headless(nn.Module):
    """A module whose configuration names no attention heads."""

    class config:
        @staticmethod
        def get_text_config() -> object:
            return object()
