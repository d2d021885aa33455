"""Statistics of experts are those of the tokens that their router sends them, looped over by hand in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from objectives.calibration import recording
from objectives.calibration.recording import record, statistics_bytes
from objectives.model.finding import find_blocks
from objectives.model.roles import Expert
from tests.objectives import tiny
from tests.objectives.tiny import EXPERTS, MIXTURES

LENGTHS = (24, 17, 24, 9, 31, 24, 2, 12)
TEXT = tiny.sequences(LENGTHS)
close = {"rtol": 1e-4, "atol": 1e-6}


def nothing(_: int) -> None:
    """Told how many sequences were read, and not interested."""


def routed_by_hand(module: Any, experts: nn.Module) -> list[list[Tensor]]:
    """The tokens `[I]` that each expert is called with, one by one, each sequence read alone and unpadded."""
    tokens: list[list[Tensor]] = [[] for _ in range(EXPERTS)]

    def hook(_: Any, args: tuple[Tensor, ...]) -> None:
        for state, numbers in zip(args[0], args[1], strict=True):
            for number in numbers.tolist():
                tokens[number].append(state.double())

    handle = experts.register_forward_pre_hook(hook)
    with torch.no_grad():
        for ids in TEXT.ids:
            module(ids[None])
    handle.remove()
    return tokens


def by_hand(mixture: str, expert: Expert, x: Tensor) -> dict[str, Tensor]:
    """What an expert computes of rows `x`, in float64."""
    gate, up = (x @ linear.weight().double().T for linear in (expert.gate, expert.up))
    if mixture == "gpt-oss":
        gate, up = gate + expert.gate.bias.double()[::2], up + expert.up.bias.double()[1::2]
        hidden = (up.clamp(-7, 7) + 1) * gate.clamp(max=7) * torch.sigmoid(1.702 * gate.clamp(max=7))
    else:
        hidden = nn.functional.silu(gate) * up
    down = hidden @ expert.down.weight().double().T
    return {
        "gate": gate,
        "up": up,
        "hidden": hidden,
        "down": down if expert.down.bias is None else down + expert.down.bias.double(),
    }


@pytest.mark.parametrize("batch_tokens", [60, 4096])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_each_experts_statistics_are_those_of_its_own_tokens(
    mixture: str, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gram matrices, magnitudes and outputs of every expert, and its number of tokens, padding excluded."""
    monkeypatch.setattr(recording, "BATCH_TOKENS", batch_tokens)
    module = tiny.module(MIXTURES[mixture]())
    block = find_blocks(module)[-1]
    (statistics,) = record(module, [block], TEXT, nothing)
    (experts,) = block.experts
    counts = []
    for number, (expert, tokens) in enumerate(
        zip(experts.experts, routed_by_hand(module, experts.module), strict=True)
    ):
        counts.append(len(tokens))
        if not tokens:
            continue
        x = torch.stack(tokens)
        computed = by_hand(mixture, expert, x)
        for read, name in ((x, "gate+up"), (computed["hidden"], "down")):
            inputs = statistics.inputs[f"{experts.name}.{number}:{name}"]
            assert inputs.tokens == len(tokens)
            torch.testing.assert_close(inputs.gram, (read.T @ read / len(read)).float(), **close)
            torch.testing.assert_close(inputs.magnitude, read.abs().mean(0).float(), **close)
            torch.testing.assert_close(inputs.mean, read.mean(0).float(), **close)
        for linear in (expert.gate, expert.up, expert.down):
            outputs, z = statistics.outputs[linear.name], computed[linear.role]
            structural = {"gate": nn.functional.silu(z), "up": computed["hidden"], "down": z}[linear.role]
            torch.testing.assert_close(outputs.mean, z.mean(0).float(), **close)
            torch.testing.assert_close(outputs.square, z.square().mean(0).float(), **close)
            torch.testing.assert_close(outputs.magnitude, z.abs().mean(0).float(), **close)
            torch.testing.assert_close(outputs.activated, nn.functional.silu(z).abs().mean(0).float(), **close)
            torch.testing.assert_close(outputs.structural, structural.abs().mean(0).float(), **close)
    assert sum(counts) == 2 * sum(LENGTHS)
    for site in block.sites:
        if site.pool is None:
            assert statistics.inputs[site.name].tokens == sum(LENGTHS)


@pytest.mark.parametrize("batch_tokens", [60, 4096])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_with_every_token_sent_through_every_expert_statistics_are_of_all_tokens(
    mixture: str, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What gates and ups read is the pooled input, `down` what the expert makes of it; routers count as they chose."""
    monkeypatch.setattr(recording, "BATCH_TOKENS", batch_tokens)
    module = tiny.module(MIXTURES[mixture]())
    block = find_blocks(module)[-1]
    ((own,), (every,)) = (record(module, [block], TEXT, nothing, route_all=route_all) for route_all in (False, True))
    (experts,) = block.experts
    by_expert = routed_by_hand(module, experts.module)
    x = torch.stack([token for tokens in by_expert for token in tokens])
    pooled = (x.T @ x / len(x)).float()
    for number, (expert, tokens) in enumerate(zip(experts.experts, by_expert, strict=True)):
        assert every.routed[expert.name] == own.routed[expert.name] == len(tokens)
        read = every.inputs[f"{experts.name}.{number}:gate+up"]
        assert read.tokens == sum(LENGTHS)
        torch.testing.assert_close(read.gram, pooled, **close)
        computed = by_hand(mixture, expert, x)
        hidden = computed["hidden"]
        torch.testing.assert_close(
            every.inputs[f"{experts.name}.{number}:down"].gram, (hidden.T @ hidden / len(hidden)).float(), **close
        )
        for linear in (expert.gate, expert.up, expert.down):
            torch.testing.assert_close(
                every.outputs[linear.name].magnitude, computed[linear.role].abs().mean(0).float(), **close
            )
    for site in block.sites:
        if site.pool is None:
            assert torch.equal(every.inputs[site.name].gram, own.inputs[site.name].gram)


def test_an_expert_that_saw_nothing_has_statistics_of_nothing() -> None:
    """Zero tokens and zeros, not NaN."""
    module = tiny.module(MIXTURES["mixtral"]())
    block = find_blocks(module)[0]
    module.model.layers[0].mlp.gate.weight[2] = module.model.layers[0].mlp.gate.weight[1]
    module.model.layers[0].mlp.gate.register_forward_hook(lambda _, args, out: (out[0], out[1], out[2].remainder(2)))
    (statistics,) = record(module, [block], TEXT, nothing)
    unseen = statistics.inputs["model.layers.0.mlp.experts.2:gate+up"]
    assert unseen.tokens == 0
    assert not unseen.gram.any()
    assert not statistics.outputs["model.layers.0.mlp.experts.2.up_proj"].magnitude.any()
    assert statistics_bytes(block) == 8 * (2 * 64**2 + EXPERTS * (64**2 + 128**2)) + 4 * 128**2
