"""Experts that are modules of their own, in a list: the same as those of transformers, which one module computes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from objectives.calibration.recording import record
from objectives.errors import InputError
from objectives.model.experts import trace
from objectives.model.finding import find_blocks, named_blocks
from objectives.model.folding import fold
from objectives.model.roles import Block, FusedExperts, InputSite, NormRole, scale_groups
from objectives.model.sites import find_sites
from objectives.suitability import require_experts
from objectives.trial import quantized, run_trial
from quant.plan import Plan
from quant.setting import Setting
from tests.objectives import tiny
from tests.objectives.listed import ListedConfig, ListedForCausalLM
from tests.objectives.tiny import EXPERTS, GROUPED, MIXTURES

AWQ = Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=5)
LENGTHS = (24, 17, 24, 9, 31, 24, 2, 12)
TEXT = tiny.sequences(LENGTHS)
close = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture
def fused() -> Any:
    return tiny.module(MIXTURES["mixtral"]())


@pytest.fixture
def listed(fused: Any) -> Any:
    return listed_like(fused)


def listed_like(fused: Any) -> Any:
    """The same model, its experts in lists."""
    own = {name: getattr(fused.config, name) for name in ("rms_norm_eps", "rope_parameters")}
    config = ListedConfig(**GROUPED, num_experts=EXPERTS, **own)
    made = ListedForCausalLM(config).eval().requires_grad_(False)
    made.load_state_dict(fused.state_dict(), strict=False)
    for own, other in zip(named_blocks(made), named_blocks(fused), strict=True):
        weights = {linear.name: linear for linear in other.linears}
        for linear in own.linears:
            linear.set_weight(weights[linear.name].weight())
    return made


def by_hand(module: Any, block: Block) -> list[Tensor]:
    """The rows that each expert of a block is called with, each sequence read alone and unpadded."""
    (experts,) = block.experts
    rows: list[list[Tensor]] = [[] for _ in experts.experts]
    handles = [
        module.get_submodule(expert.name).register_forward_pre_hook(
            lambda _, args, number=number: rows[number].append(args[0].double())
        )
        for number, expert in enumerate(experts.experts)
    ]
    with torch.no_grad():
        for ids in TEXT.ids:
            module(ids[None])
    for handle in handles:
        handle.remove()
    return [torch.cat(parts) for parts in rows]


def test_it_is_the_same_model(fused: Any, listed: Any) -> None:
    ids = torch.randint(2, tiny.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(listed(ids).logits, fused(ids).logits)


def test_roles_sites_and_folds_are_those_of_the_fused_model(fused: Any, listed: Any) -> None:
    """Names, what must be stored alike, the norm with its router, and every expert's own up before its down."""

    def described(block: Block) -> list[Any]:
        return [
            (
                site.name,
                site.pool,
                [(linear.name, linear.role, linear.shape) for linear in site.linears],
                None if site.producer is None else site.producer.name,
                len(site.producer.readers) if isinstance(site.producer, NormRole) else None,
            )
            for site in block.sites
        ]

    own, other = find_blocks(listed), find_blocks(fused)
    assert [described(block) for block in own] == [described(block) for block in other]
    assert find_sites(own) == find_sites(other)
    assert [block.uncovered for block in own] == [block.uncovered for block in other]
    assert all(site.folds for block in own for site in block.sites)
    assert not any(isinstance(held, FusedExperts) for block in own for held in block.experts)


def test_folding_every_site_is_exact(fused: Any) -> None:
    """With powers of two folded into norms, routers and experts every logit is the same number, in float64."""
    module = listed_like(fused).double()
    ids = torch.randint(2, tiny.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(3))
    before, state = module(ids).logits, tiny.state(module)
    for block in find_blocks(module):
        divisors: dict[str, Tensor] = {}
        for number, group in enumerate(reversed(scale_groups(block.sites))):
            scale = powers_of_two(group[0], number)
            for linear in (linear for site in group for linear in site.linears):
                rows = divisors.get(linear.name, torch.ones(linear.shape[0]))
                linear.set_weight(linear.weight() / rows[:, None] * scale)
            divisors |= fold(group[0], scale, torch.float64)
    assert torch.equal(module(ids).logits, before)
    changed = {name for name, weight in tiny.state(module).items() if not torch.equal(weight, state[name])}
    assert "model.layers.1.mlp.gate.weight" in changed


def powers_of_two(site: InputSite, seed: int) -> Tensor:
    doublings = torch.randint(-3, 4, (site.inputs,), generator=torch.Generator().manual_seed(seed)).double()
    return (doublings if site.tie is None else site.tie.average(doublings).round()).exp2()


def test_each_experts_statistics_are_those_of_its_own_tokens_without_padding(listed: Any) -> None:
    """Of sequences of many lengths: Gram matrices, magnitudes, outputs, and how many tokens the router sent."""
    block = find_blocks(listed)[-1]
    (statistics,) = record(listed, [block], TEXT, lambda _: None)
    (experts,) = block.experts
    rows = by_hand(listed, block)
    assert [statistics.routed[expert.name] for expert in experts.experts] == [len(x) for x in rows]
    assert sum(map(len, rows)) == 2 * sum(LENGTHS)
    for number, (expert, x) in enumerate(zip(experts.experts, rows, strict=True)):
        gate, up = (x @ linear.weight().double().T for linear in (expert.gate, expert.up))
        hidden = torch.nn.functional.silu(gate) * up
        for read, name in ((x, "gate+up"), (hidden, "down")):
            inputs = statistics.inputs[f"{experts.name}.{number}:{name}"]
            assert inputs.tokens == len(x)
            torch.testing.assert_close(inputs.gram, (read.T @ read / len(read)).float(), **close)
            torch.testing.assert_close(inputs.magnitude, read.abs().mean(0).float(), **close)
        assert statistics.outputs[expert.up.name].tokens == len(x)
        torch.testing.assert_close(statistics.outputs[expert.up.name].structural, hidden.abs().mean(0).float(), **close)
        torch.testing.assert_close(statistics.outputs[expert.gate.name].mean, gate.mean(0).float(), **close)


def test_it_is_quantized_as_the_fused_model_is(fused: Any, listed: Any, tmp_path: Path) -> None:
    """The same choices, shrunk in the same way for experts of few tokens, and the same weights."""
    benches = []
    for name, module in (("fused", fused), ("listed", listed)):
        model = replace(tiny.model(MIXTURES["mixtral"]()), module=module, fingerprint=name)
        benches.append(tiny.bench(model, tmp_path / name))
    weights, results = [], []
    for bench in benches:
        with quantized(bench, Plan.uniform(AWQ)):
            weights.append({linear.name: linear.weight().clone() for block in bench.blocks for linear in block.linears})
        results.append(run_trial(bench, Plan.uniform(AWQ), TEXT))
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-5)
    first, second = ([(layer.name, layer.alpha, layer.tokens) for layer in result.layers] for result in results)
    assert first == second
    torch.testing.assert_close(results[0].score.nll, results[1].score.nll, rtol=1e-4, atol=1e-4)


def test_an_expert_that_no_token_reaches_is_quantized_by_what_the_others_read(listed: Any, tmp_path: Path) -> None:
    for layer in listed.model.layers:
        # The norm's output is of both signs, so that no weight alone keeps all tokens away.
        layer.mlp.gate.weight[:] = 0
        own = layer.mlp.gate.forward
        layer.mlp.gate.forward = lambda rows, own=own: own(rows) + torch.tensor([0.0, 1.0, 2.0, -1.0])
    model = replace(tiny.model(MIXTURES["mixtral"]()), module=listed, fingerprint="starved")
    bench = tiny.bench(model, tmp_path)
    before = bench.blocks[0].experts[0].experts[3].gate.weight().clone()
    with quantized(bench, Plan.uniform(AWQ)):
        changed = bench.blocks[0].experts[0].experts[3].gate.weight()
        assert not torch.equal(changed, before)
        assert changed.isfinite().all()


def test_sending_every_token_through_every_expert_is_refused(listed: Any) -> None:
    with pytest.raises(InputError, match="--route-all is for experts that one module computes, and those of tiny are"):
        require_experts("tiny", find_blocks(listed))


def test_fused_experts_are_traced_and_listed_ones_are_not(fused: Any, listed: Any) -> None:
    """What one module computes is computed again; what has modules is watched there."""
    ((experts,), (held,)) = (find_blocks(module)[0].experts for module in (fused, listed))
    assert isinstance(experts, FusedExperts)
    x = torch.randn(3, tiny.HIDDEN)
    expert = held.experts[1]
    torch.testing.assert_close(listed.get_submodule(expert.name)(x), trace(experts, 1, x).down)
