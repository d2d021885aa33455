"""The mixture that experts are measured on begins as the model it is made of, and training lowers its loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from objectives.bundled.text import MODEL_DIRECTORY
from objectives.model.finding import find_blocks
from training.train_mixture import dealt, main


@pytest.fixture(scope="module")
def dense() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL_DIRECTORY, dtype=torch.float32).eval()


def test_all_experts_together_are_the_mlp_that_they_were_dealt_from(dense: Any) -> None:
    """Every token to every expert, all of one weight: each logit is the dense model's."""
    mixture = dealt(dense, experts=6, per_token=6).eval()
    for layer in mixture.model.layers:
        torch.nn.init.zeros_(layer.mlp.gate.weight)
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(mixture(ids).logits, dense(ids).logits, rtol=1e-4, atol=1e-4)


def test_it_is_a_mixture_that_is_known(dense: Any) -> None:
    """Six experts of 128 neurons in each block, all of them with roles."""
    blocks = find_blocks(dealt(dense, experts=6, per_token=2).eval())
    assert [len(block.experts[0].experts) for block in blocks] == [6] * len(dense.model.layers)
    assert {block.experts[0].experts[0].down.shape for block in blocks} == {(256, 128)}


@pytest.mark.slow
def test_it_is_trained_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty steps are enough for a lower loss; what is written can be loaded."""
    main(["--steps", "20", "--experts", "6", "--batch", "2", "--out", str(tmp_path / "mixture")])
    losses = [float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "mixture", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.num_local_experts == 6
