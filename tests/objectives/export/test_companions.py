"""What stands beside the weights of a model goes with it, and nothing that would be untrue of the copy."""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from objectives.export.companions import copy_companions
from objectives.model.finding import find_blocks
from objectives.model.roles import quantized_part
from tests.objectives import tiny

COPIED = {"preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "LICENSE", "code.py"}
LEFT = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "README.md", "praqtune.json", ".git"}


def test_everything_beside_the_weights_is_copied(tmp_path: Path) -> None:
    """Processors of images, licences, code; what was written already stays."""
    source, place = tmp_path / "source", tmp_path / "place"
    source.mkdir()
    place.mkdir()
    for name in COPIED | LEFT | {"tokenizer.json"}:
        (source / name).write_text(name)
    (source / "original").mkdir()
    (place / "tokenizer.json").write_text("written")
    copy_companions(replace(tiny.model(tiny.LAYOUTS["llama"]()), name=str(source)), place)
    assert {path.name for path in place.iterdir()} == COPIED | {"tokenizer.json"}
    assert (place / "tokenizer.json").read_text() == "written"


def test_which_part_of_a_vision_language_model_is_quantized_is_said() -> None:
    """Of text models nothing is said; of others the decoder and the largest weights outside it are named."""
    for layout in ("llama", "opt", "gpt-neox"):
        module = tiny.module(tiny.LAYOUTS[layout]())
        assert quantized_part(module, find_blocks(module)) is None
    config = Gemma3Config(
        text_config={**tiny.GEMMA, "sliding_window": 16},
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    torch.manual_seed(0)
    module = Gemma3ForConditionalGeneration(config).eval()
    said = quantized_part(module, find_blocks(module))
    assert said is not None
    assert said.startswith("the decoder blocks (model.language_model.layers) are quantized; the other parts")
    assert "model.vision_tower" in said
