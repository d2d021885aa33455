"""Property tests draw the same examples in every run; a real MLP input comes from the bundled model."""

from pydoc_data.topics import topics

import pytest
import torch
from hypothesis import settings
from torch import Tensor

settings.register_profile("quant", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("quant")

WINDOW = 128


@pytest.fixture(scope="session")
def real_mlp() -> dict[str, Tensor]:
    """Of the bundled model's middle block reading Python's topics: the MLP's input `rows`, and `gate` and `up`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from objectives.bundled.text import MODEL_DIRECTORY

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIRECTORY, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIRECTORY)
    tokens = tokenizer(topics["assignment"], return_tensors="pt", truncation=True, max_length=4 * WINDOW).input_ids
    mlp = model.model.layers[len(model.model.layers) // 2].mlp
    seen: list[Tensor] = []
    hook = mlp.gate_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(tokens.view(4, WINDOW))
    hook.remove()
    return {
        "rows": torch.cat(seen).flatten(0, 1),
        "gate": mlp.gate_proj.weight.detach(),
        "up": mlp.up_proj.weight.detach(),
    }
