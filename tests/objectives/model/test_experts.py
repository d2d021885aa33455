"""Mixtures of experts: their matrices by name, what each computes, what their tokens say, and whole trials."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from objectives.errors import InputError
from objectives.export.formats import Export
from objectives.export.writing import write_model
from objectives.model.experts import routed, trace
from objectives.model.finding import find_blocks
from objectives.model.folding import fold, norm_weight
from objectives.model.roles import InputSite, NormRole, scale_groups
from objectives.progress import silent
from objectives.suitability import require_suitable
from objectives.trial import quantized, run_trial
from quant.plan import Plan
from quant.setting import Setting
from tests.objectives import tiny
from tests.objectives.tiny import EXPERTS, HIDDEN, MIXTURES

mixtures = pytest.mark.parametrize("mixture", MIXTURES)
ATTENTION = {f"self_attn.{role}_proj": role for role in "qkvo"}
LATENT = {"self_attn.q_a_proj": "q_a", "self_attn.kv_a_proj_with_mqa": "kv_a", "self_attn.q_b_proj": "q_b"}
LATENT |= {"self_attn.kv_b_proj": "kv_b", "self_attn.o_proj": "o"}
DENSE = {f"mlp.{role}_proj": role for role in ("gate", "up", "down")}
ROUTED = {f"mlp.experts.{number}.{role}_proj": role for number in range(EXPERTS) for role in ("gate", "up", "down")}
SHARED = {f"mlp.shared_expert.{role}_proj": role for role in ("gate", "up", "down")}
SHAREDS = {f"mlp.shared_experts.{role}_proj": role for role in ("gate", "up", "down")}
ROLES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "mixtral": (ATTENTION | ROUTED, ATTENTION | ROUTED),
    "qwen3-moe": (ATTENTION | ROUTED, ATTENTION | ROUTED),
    "qwen2-moe": (ATTENTION | DENSE, ATTENTION | SHARED | ROUTED),
    "deepseek-v3": (LATENT | DENSE, LATENT | SHAREDS | ROUTED),
    "gpt-oss": (ATTENTION | ROUTED, ATTENTION | ROUTED),
}
UNCOVERED = {name: {"mlp.gate.weight"} for name in MIXTURES} | {"gpt-oss": {"mlp.router.weight"}}
UNCOVERED["qwen2-moe"] = {"mlp.gate.weight", "mlp.shared_expert_gate.weight"}
# What lies between up and down of gpt-oss adds one and clamps; values of DeepSeek stand among keys.
UNFOLDED = {"gpt-oss": {"down"}, "deepseek-v3": {"o"}}
AWQ = Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=5)
TEXT = tiny.sequences([20, 31, 8, 20, 20, 13, 20, 20, 20, 20], seed=2)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, tiny.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(3))


def exact(mixture: str) -> Any:
    """A mixture in float64, in which one product for all experts is not implemented."""
    module = tiny.module(MIXTURES[mixture](), dtype=torch.float64)
    module.config._experts_implementation = "eager"
    return module


@mixtures
def test_every_matrix_of_every_expert_is_found_by_name(mixture: str) -> None:
    """Experts have their number in their names, shared experts and dense blocks are as ever, routers stay in 16 bit."""
    blocks = find_blocks(tiny.module(MIXTURES[mixture]()))
    for block, expected in zip(blocks, ROLES[mixture], strict=True):
        assert {linear.name: linear.role for linear in block.linears} == {
            f"{block.name}.{child}": role for child, role in expected.items()
        }
        routers = {f"{block.name}.{name}" for name in UNCOVERED[mixture]} if block.experts else set()
        assert set(block.uncovered) == routers


@mixtures
def test_the_norm_feeds_all_experts_and_the_router(mixture: str) -> None:
    """Gates and ups of all experts, shared ones too, share one norm with the router; downs are behind their own ups."""
    for block in find_blocks(tiny.module(MIXTURES[mixture]())):
        assert {linear.role for site in block.sites if not site.folds for linear in site.linears} == UNFOLDED.get(
            mixture, set()
        )
        reading = [site for site in block.sites if site.linears[0].role == "gate"]
        assert tuple(reading) in scale_groups(block.sites)
        for site in reading:
            assert isinstance(site.producer, NormRole)
            assert len(site.producer.readers) == len(UNCOVERED[mixture] if block.experts else ())
        for site in block.sites:
            if site.linears[0].role == "down" and site.folds:
                assert site.producer is not None
                assert site.producer.name == f"{site.linears[0].owner}.up_proj"


@mixtures
def test_the_matrices_of_an_expert_are_those_that_the_module_computes_with(mixture: str) -> None:
    """Each expert alone, by hand in float64 from the weights of its roles, is what the module makes of its tokens."""
    module = exact(mixture)
    block = find_blocks(module)[-1]
    (experts,) = block.experts
    x = torch.randn(6, HIDDEN, dtype=torch.float64)
    for number, expert in enumerate(experts.experts):
        gate, up = (x @ role.weight().T for role in (expert.gate, expert.up))
        if mixture == "gpt-oss":
            gate, up = gate + expert.gate.bias[::2], up + expert.up.bias[1::2]
            hidden = (up.clamp(-7, 7) + 1) * gate.clamp(max=7) * torch.sigmoid(1.702 * gate.clamp(max=7))
            expected = hidden @ expert.down.weight().T + expert.down.bias
        else:
            hidden = torch.nn.functional.silu(gate) * up
            expected = hidden @ expert.down.weight().T
        own = experts.module(x, torch.full((6, 1), number), torch.ones(6, 1, dtype=torch.float64))
        torch.testing.assert_close(own, expected)
        traced = trace(experts, number, x)
        torch.testing.assert_close(traced.hidden, hidden)
        torch.testing.assert_close(traced.down, expected)


def test_tokens_are_dealt_to_their_experts_in_order() -> None:
    """Every token is with each of its experts once; numbers beyond the last are of no expert."""
    numbers = torch.tensor([[0, 2], [1, 0], [3, 3], [2, 1]])
    assert [tokens.tolist() for tokens in routed(numbers, 3)] == [[0, 1], [1, 3], [0, 3]]
    assert [len(tokens) for tokens in routed(numbers[2:3], 3)] == [0, 0, 0]


def powers_of_two(site: InputSite, seed: int) -> Tensor:
    doublings = torch.randint(-3, 4, (site.inputs,), generator=torch.Generator().manual_seed(seed)).double()
    return (doublings if site.tie is None else site.tie.average(doublings).round()).exp2()


@mixtures
def test_folding_every_site_is_exact(mixture: str, ids: Tensor) -> None:
    """With powers of two folded into norms, routers, experts and values every logit is the same number, in float64."""
    module = exact(mixture)
    before, state = module(ids).logits, tiny.state(module)
    for block in find_blocks(module):
        divisors: dict[str, Tensor] = {}
        for number, group in enumerate(reversed(scale_groups(block.sites))):
            scale = powers_of_two(group[0], number) if group[0].folds else torch.ones(group[0].inputs)
            for linear in (linear for site in group for linear in site.linears):
                rows = divisors.get(linear.name, torch.ones(linear.shape[0]))
                linear.set_weight(linear.weight() / rows[:, None] * scale)
            if group[0].folds:
                divisors |= fold(group[0], scale, torch.float64)
    changed = {name for name, weight in tiny.state(module).items() if not torch.equal(weight, state[name])}
    assert {f"model.layers.1.{name}" for name in UNCOVERED[mixture]} < changed
    assert torch.equal(module(ids).logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_router_takes_a_scale_exactly(dtype: torch.dtype) -> None:
    """Scales in front of a router are powers of two, as long as its own type holds the product."""
    module = tiny.module(MIXTURES["mixtral"](), dtype=dtype)
    (*_, group), router = scale_groups(find_blocks(module)[0].sites)[:3], module.model.layers[0].mlp.gate.weight
    router[0, 60] = 1.0 if dtype == torch.bfloat16 else 6e4
    norm = norm_weight(group[0], dtype)
    scale = norm.representable(torch.linspace(0.3, 9, HIDDEN))
    assert torch.equal(scale.log2(), scale.log2().round())
    assert len(scale.unique()) > 3
    assert (scale[60] == 1) == (dtype == torch.float16)
    taken = router.clone()
    fold(group[0], scale, dtype)
    assert torch.equal(router.float() / scale, taken.float())


@mixtures
@pytest.mark.parametrize("scales", ["foldable", "linear"])
def test_a_trial_on_every_mixture(tmp_path: Path, mixture: str, scales: Any) -> None:
    """Calibrated, quantized, scored and put back bit for bit; experts that share a scale share one alpha."""
    model = tiny.model(MIXTURES[mixture]())
    bench = tiny.bench(model, tmp_path)
    before, full = tiny.state(model.module), run_trial(bench, None, TEXT)
    result = run_trial(bench, Plan.uniform(replace(AWQ, method="gwh-praq-v2", scales=scales)), TEXT)
    assert result.outcome == "complete"
    assert not torch.equal(result.score.nll, full.score.nll)
    assert [layer.name for layer in result.layers] == [
        linear.name for block in bench.blocks for linear in block.linears
    ]
    if scales == "linear":
        assert any(layer.alpha > 0 for layer in result.layers if ".experts." in layer.name)
    if scales == "foldable":
        alphas = {layer.name: layer.alpha for layer in result.layers}
        for group in scale_groups(bench.blocks[-1].sites):
            assert len({alphas[linear.name] for site in group for linear in site.linears}) == 1
    covered = sum(linear.weight().numel() for block in bench.blocks for linear in block.linears)
    uncovered = sum(size for block in bench.blocks for size in block.uncovered.values())
    assert result.size.weights == covered + uncovered
    assert result.size.bits_per_weight == pytest.approx((4.5 * covered + 32 * uncovered) / (covered + uncovered), abs=2)
    assert tiny.same_bits(before, tiny.state(model.module))


@mixtures
def test_a_dense_directory_comes_back_bit_by_bit(mixture: str, tmp_path: Path) -> None:
    """What transformers loads are the weights that were measured, those of experts, routers and norms."""
    model = replace(tiny.model(MIXTURES[mixture](), dtype=torch.bfloat16), tokenizer=tiny.complete().tokenizer)
    bench, target = tiny.bench(model, tmp_path / "home"), tmp_path / "model"
    with quantized(bench, Plan.uniform(AWQ)):
        expected = tiny.state(model.module)
    write_model(Export(bench=bench, plan=Plan.uniform(AWQ), directories={"dense": target}), silent)
    assert tiny.same_bits(expected, tiny.state(AutoModelForCausalLM.from_pretrained(target, dtype="auto")))


def test_experts_behind_one_norm_have_one_setting(tmp_path: Path) -> None:
    """A plan that gives one expert's gate another setting is refused, but not with scales of their own."""
    bench = tiny.bench(tiny.model(MIXTURES["mixtral"]()), tmp_path)
    name = "model.layers.0.mlp.experts.2.gate_proj"
    for scales in ("foldable", "linear"):
        setting = replace(AWQ, scales=scales)
        plan = Plan(named={name: replace(setting, group_size=64)}, others=setting)
        if scales == "linear":
            require_suitable(bench.blocks, plan)
            continue
        with pytest.raises(InputError, match=r"experts\.0\.gate_proj, .* share one foldable input scale and have 2"):
            require_suitable(bench.blocks, plan)


def test_a_weight_that_two_norms_would_change_takes_no_scale() -> None:
    """A router that stands in two blocks cannot take the scale of either."""
    module = tiny.module(MIXTURES["mixtral"]())
    first, second = module.model.layers
    second.mlp.gate = first.mlp.gate
    for block in find_blocks(module):
        assert {site.linears[0].role: site.folds for site in block.sites} == {
            "q": True, "o": True, "gate": False, "down": True,
        }  # fmt: skip
