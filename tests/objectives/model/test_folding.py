"""Folded scales change nothing that a model computes: on every layout, by hand and as a search chooses them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import ArceeConfig, FalconConfig, OlmoConfig

import quant.layers
from objectives.model.finding import find_blocks
from objectives.model.folding import fold
from objectives.model.layouts import norm_offset
from objectives.model.loading import Model
from objectives.model.roles import InputSite, NormRole, unscaled_inputs
from objectives.trial import quantized
from quant.plan import Plan
from quant.setting import Setting
from tests.objectives import tiny
from tests.objectives.tiny import LAYOUTS

layouts = pytest.mark.parametrize("layout", LAYOUTS)
# What lies between a Linear and what it feeds does not commute with a scale.
OTHERS = {
    "arcee": lambda: ArceeConfig(**tiny.GROUPED),
    "olmo": lambda: OlmoConfig(**tiny.GROUPED, clip_qkv=1e-2),
    "falcon": lambda: FalconConfig(**tiny.COMMON),
}
AWQ = Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=5, symmetric=False)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, tiny.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(3))


def logits(model: Model, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.module(ids).logits


def scale_of(site: InputSite, seed: int) -> Tensor:
    """Between 1/8 and 8, as its tie wants it."""
    scale = torch.rand(site.inputs, generator=torch.Generator().manual_seed(seed)).mul(6).sub(3).exp2()
    return scale if site.tie is None else site.tie.average(scale)


@pytest.mark.parametrize("layout", [*LAYOUTS, *OTHERS])
def test_folding_every_site_changes_no_logit(layout: str, ids: Tensor) -> None:
    """All weights times their scales, and all that feeds them divided: the same logits to float32 precision."""
    made = tiny.model((LAYOUTS | OTHERS)[layout]())
    before, state = logits(made, ids), tiny.state(made.module)
    with torch.no_grad():
        for block in find_blocks(made.module):
            divisors: dict[str, Tensor] = {}
            for number, site in enumerate(reversed(block.sites)):
                for linear in site.linears:
                    rows = divisors.get(linear.name, torch.ones(linear.shape[0]))
                    scale = scale_of(site, number) if site.folds else torch.ones(site.inputs)
                    linear.set_weight(linear.weight() / rows[:, None] * scale)
                if site.folds:
                    divisors |= fold(site, scale_of(site, number), torch.float32)
    assert not tiny.same_bits(state, tiny.state(made.module))
    torch.testing.assert_close(logits(made, ids), before, rtol=1e-4, atol=1e-4 * float(before.std()))


@layouts
@pytest.mark.parametrize("file_dtype", [torch.float32, torch.bfloat16])
def test_a_search_without_rounding_changes_no_logit(
    layout: str, file_dtype: torch.dtype, ids: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales as a search chooses them, folded as they are stored, leave the model as it was but for rounded biases."""
    made = tiny.model(LAYOUTS[layout](), dtype=torch.float32)
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.copy_(parameter.to(file_dtype))
    made = replace(made, file_dtype=file_dtype)
    bench = tiny.bench(made, tmp_path)
    before, state = logits(made, ids), tiny.state(made.module)
    monkeypatch.setattr(quant.layers, "quantize", lambda weight, scheme: weight)
    monkeypatch.setattr(quant.layers, "loaded", lambda weight: weight)
    with quantized(bench, Plan.uniform(AWQ)) as made_of:
        assert any(layer.alpha > 0 for layer in made_of.layers)
        folded = {
            site.producer.name for block in bench.blocks for site in block.sites if isinstance(site.producer, NormRole)
        }
        changed = {
            name.rpartition(".")[0]
            for name, weight in tiny.state(made.module).items()
            if not torch.equal(weight, state[name])
        }
        assert bool(folded & changed) == bool(folded)
        after = logits(made, ids)
        assert all(
            torch.equal(weight, weight.to(file_dtype))
            for name, weight in tiny.state(made.module).items()
            if "norm" in name
        )
    tolerance = 1e-4 if file_dtype == torch.float32 else 1e-2
    torch.testing.assert_close(after, before, rtol=tolerance, atol=tolerance * float(before.std()))
    assert tiny.same_bits(state, tiny.state(made.module))


@layouts
@pytest.mark.parametrize("scales", ["foldable", "linear"])
def test_everything_that_was_folded_is_put_back(layout: str, scales: str, tmp_path: Path) -> None:
    """Norms and biases are as they were after a trial; with scales of its own for every Linear they never change."""
    made = tiny.model(LAYOUTS[layout](), dtype=torch.bfloat16)
    bench = tiny.bench(made, tmp_path)
    before = tiny.state(made.module)
    with quantized(bench, Plan.uniform(replace(AWQ, scales=scales))):
        inside = tiny.state(made.module)
    assert tiny.same_bits(before, tiny.state(made.module))
    if scales == "linear":
        weights = {f"{linear.name.partition(':')[0]}.weight" for block in bench.blocks for linear in block.linears}
        rest = before.keys() - weights
        assert tiny.same_bits({name: before[name] for name in rest}, {name: inside[name] for name in rest})


@pytest.mark.parametrize(
    ("layout", "offset"), [("llama", 0.0), ("opt", 0.0), ("gpt-neox", 0.0), ("gemma", 1.0), ("gemma3", 1.0)]
)
def test_norms_that_add_one_to_their_weight_are_found(layout: str, offset: float) -> None:
    """What a norm does with its weight is found by running it, in any type."""
    for dtype in (torch.float32, torch.bfloat16):
        for block in find_blocks(tiny.module(LAYOUTS[layout](), dtype=dtype)):
            assert {site.producer.offset for site in block.sites if isinstance(site.producer, NormRole)} == {offset}


def test_a_norm_that_works_otherwise_takes_no_scale() -> None:
    """A weight that is not a factor, and a norm without one, are none that a scale folds into."""

    class Odd(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight.square()

    assert norm_offset(Odd(8)) is None
    assert norm_offset(nn.Identity()) is None
    assert norm_offset(nn.LayerNorm(8)) == 0


def test_inputs_that_nothing_can_scale_are_named() -> None:
    """Which inputs stay as they are is said in one line, and nothing where all fold."""
    said = {layout: unscaled_inputs(find_blocks(tiny.module(LAYOUTS[layout]()))) for layout in LAYOUTS}
    assert said["llama"] is None
    assert said["gpt-neox"] == (
        "foldable scales are 1 for 2 of 8 inputs, that of fc2: what produces them cannot take a scale"
    )
    assert said["opt-post-norm"].startswith("foldable scales are 1 for 4 of 8 inputs, that of q+k+v, fc1:")
