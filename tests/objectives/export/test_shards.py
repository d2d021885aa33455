"""A model whose blocks are in files is saved block by block, and loads as the one that was saved whole."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from objectives.bundled.text import MODEL_DIRECTORY
from objectives.calibration.calibration import Calibration
from objectives.export.dense import Dense
from objectives.model.finding import decoder_layers, find_blocks
from objectives.model.loading import ModelPlan, load_model
from objectives.trial import Bench, quantized
from quant.plan import Plan
from quant.setting import Setting
from storage.cache import TensorCache
from storage.paths import Paths
from tests.objectives import tiny

PLAN = Plan.uniform(Setting(method="rtn", group_size=32, n_calib=2))


@pytest.mark.parametrize("layout", ["llama", "gemma", "mixtral", "gpt-oss"])
def test_what_is_saved_in_shards_loads_as_what_is_saved_whole(layout: str, tmp_path: Path) -> None:
    """Names, tied weights and experts are those of the original's files; every weight is the quantized one."""
    original = tmp_path / "original"
    made = tiny.module((tiny.LAYOUTS | tiny.MIXTURES)[layout](), dtype=torch.bfloat16)
    made.save_pretrained(original)
    AutoTokenizer.from_pretrained(MODEL_DIRECTORY).save_pretrained(original)
    blocks = [sum(parameter.numel() for parameter in layer.parameters()) for layer in decoder_layers(made)[1]]
    outside = sum(parameter.numel() for parameter in made.parameters()) - sum(blocks)
    least = 4 * (outside + 2 * max(blocks))
    states = []
    for name, memory in (("whole", None), ("parts", least)):
        plan = ModelPlan(name=str(original), dtype="float32", device_memory=memory, offload=str(tmp_path))
        model = load_model(plan)
        assert model.weights.streamed == (name == "parts")
        roles = find_blocks(model.module, weights=model.weights)
        text = tiny.sequences([12, 9], seed=1)
        bench = Bench(model=model, blocks=roles, calibration=Calibration(model, roles, text, cache(tmp_path / name)))
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        with quantized(bench, PLAN) as made_of:
            Dense().write(bench, PLAN, made_of.codes, place)
        states.append(AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).state_dict())
        assert (place / "config.json").read_text() == (tmp_path / "whole" / "config.json").read_text()
    shards = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors"))
    assert shards == [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    assert tiny.same_bits(*states)
    assert not tiny.same_bits(states[0], tiny.state(made.float()))


def cache(home: Path) -> TensorCache:
    return TensorCache(Paths(home))
