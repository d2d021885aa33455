"""Recorded statistics are those of activations captured by hand, sequence by sequence, in float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from objectives.calibration import recording
from objectives.calibration.recording import BlockStatistics, record, statistics_bytes
from objectives.model.finding import find_blocks
from objectives.model.roles import Block, LinearRole
from objectives.text.sequences import Sequences
from tests.objectives import tiny

LAYOUTS = ("llama", "gemma3", "opt", "opt-post-norm", "gpt-neox", "phi3")
LENGTHS = (24, 17, 24, 9, 31, 24, 2, 12)
close = {"rtol": 1e-4, "atol": 1e-6}


def nothing(_: int) -> None:
    """Told how many sequences were read, and not interested."""


@contextmanager
def captured(blocks: list[Block]) -> Iterator[dict[str, tuple[list[Tensor], list[Tensor]]]]:
    """The inputs and outputs of every Linear and slice, by name."""
    rows: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    handles = []
    for linear in (linear for block in blocks for linear in block.linears):
        rows[linear.name] = ([], [])

        def hook(_: Any, args: tuple[Tensor, ...], output: Tensor, linear: LinearRole = linear) -> None:
            inputs, outputs = rows[linear.name]
            inputs.append(args[0].reshape(-1, args[0].shape[-1]))
            own = output.reshape(-1, output.shape[-1])
            outputs.append(own if linear.rows is None else own[:, linear.rows])

        handles.append(linear.module.register_forward_hook(hook))
    yield rows
    for handle in handles:
        handle.remove()


def by_hand(module: Any, blocks: list[Block], text: Sequences) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs `[N, I]` and outputs `[N, O]` of every Linear, each sequence read alone and unpadded."""
    with captured(blocks) as rows, torch.no_grad():
        for ids in text.ids:
            module(ids[None])
    return {name: (torch.cat(inputs), torch.cat(outputs)) for name, (inputs, outputs) in rows.items()}


def recorded(module: Any, blocks: list[Block], text: Sequences) -> list[BlockStatistics]:
    return list(record(module, blocks, text, nothing))


@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_are_those_of_the_activations(
    layout: str, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gram, magnitudes, means and both placements agree with their definitions, however sequences are batched."""
    monkeypatch.setattr(recording, "BATCH_TOKENS", batch_tokens)
    module = tiny.module(tiny.LAYOUTS[layout]())
    blocks, text = find_blocks(module), tiny.sequences(LENGTHS)
    for block, statistics in zip(blocks, recorded(module, blocks, text), strict=True):
        rows = by_hand(module, [block], text)
        assert set(statistics.inputs) == {site.name for site in block.sites}
        assert set(statistics.outputs) == {linear.name for linear in block.linears}
        gate = next((rows[linear.name][1] for linear in block.linears if linear.role == "gate"), None)
        for site in block.sites:
            inputs = statistics.inputs[site.name]
            x = rows[site.linears[0].name][0].double()
            assert inputs.tokens == len(x) == sum(LENGTHS)
            torch.testing.assert_close(inputs.gram, (x.T @ x / len(x)).float(), **close)
            torch.testing.assert_close(inputs.magnitude, x.abs().mean(0).float(), **close)
            torch.testing.assert_close(inputs.mean, x.mean(0).float(), **close)
            for linear in site.linears:
                outputs, z = statistics.outputs[linear.name], rows[linear.name][1]
                activated = block.activation(z) if site.kind == "mlp" else z
                structural = z
                if linear.role in ("gate", "fc1"):
                    structural = activated
                elif linear.role == "up":
                    structural = block.activation(gate) * z
                assert outputs.tokens == len(z)
                torch.testing.assert_close(outputs.mean, z.double().mean(0).float(), **close)
                torch.testing.assert_close(outputs.square, z.double().square().mean(0).float(), **close)
                torch.testing.assert_close(outputs.magnitude, z.double().abs().mean(0).float(), **close)
                torch.testing.assert_close(outputs.activated, activated.double().abs().mean(0).float(), **close)
                torch.testing.assert_close(outputs.structural, structural.double().abs().mean(0).float(), **close)


def test_placements_differ_where_they_should() -> None:
    """Original takes every MLP output through the activation; structural does so for the gate alone."""
    module = tiny.module(tiny.LAYOUTS["llama"]())
    block = find_blocks(module)[0]
    outputs = recorded(module, [block], tiny.sequences(LENGTHS))[0].outputs
    by_role = {linear.role: outputs[linear.name] for linear in block.linears}
    for role in ("q", "k", "v", "o"):
        assert torch.equal(by_role[role].activated, by_role[role].magnitude)
        assert torch.equal(by_role[role].structural, by_role[role].magnitude)
    assert torch.equal(by_role["gate"].structural, by_role["gate"].activated)
    assert torch.equal(by_role["down"].structural, by_role["down"].magnitude)
    for role in ("up", "down"):
        assert not torch.allclose(by_role[role].structural, by_role[role].activated, rtol=0.05)


def test_bfloat16_models_are_recorded_in_float32() -> None:
    """Statistics of a 16-bit model are float32 and close to those of the same weights in float32."""
    config = tiny.LAYOUTS["llama"]()
    text = tiny.sequences(LENGTHS)
    narrow = tiny.module(config, dtype=torch.bfloat16)
    wide = tiny.module(config, dtype=torch.bfloat16).float()
    for module in (narrow, wide):
        module.config.dtype = None
    own = recorded(narrow, find_blocks(narrow), text)
    reference = recorded(wide, find_blocks(wide), text)
    for collected, other in zip(own, reference, strict=True):
        for name, inputs in collected.inputs.items():
            assert inputs.gram.dtype == inputs.magnitude.dtype == torch.float32
            scale = float(other.inputs[name].gram.diagonal().mean())
            torch.testing.assert_close(inputs.gram, other.inputs[name].gram, rtol=0.05, atol=0.05 * scale)
        for name, outputs in collected.outputs.items():
            assert outputs.activated.dtype == torch.float32
            torch.testing.assert_close(outputs.magnitude, other.outputs[name].magnitude, rtol=0.05, atol=1e-2)


def hooks(module: Any) -> int:
    return sum(len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules())


def test_hooks_are_removed() -> None:
    """Before the first statistics are handed out the model is as it was."""
    module = tiny.module(tiny.LAYOUTS["phi3"]())
    statistics = record(module, find_blocks(module), tiny.sequences(LENGTHS), nothing)
    next(statistics)
    assert hooks(module) == 0


def test_hooks_are_removed_after_an_error() -> None:
    """A failure in the middle of the text leaves no hook behind."""
    module = tiny.module(tiny.LAYOUTS["llama"]())
    seen = []

    def interrupted(count: int) -> None:
        seen.append(hooks(module))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(record(module, find_blocks(module), tiny.sequences(LENGTHS), interrupted))
    assert seen[0] > 0
    assert hooks(module) == 0


@pytest.mark.parametrize("watched", [[0], [1], [0, 1]])
def test_nothing_after_the_last_watched_block_runs(watched: list[int]) -> None:
    """Blocks up to the last watched one run once per batch; later ones, the last norm and the head do not."""
    module = tiny.module(tiny.LAYOUTS["llama"]())
    blocks = find_blocks(module)
    ran: list[str] = []
    named = {f"block {index}": layer for index, layer in enumerate(module.model.layers)}
    named |= {"norm": module.model.norm, "head": module.lm_head}
    for name, child in named.items():
        child.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    statistics = recorded(module, [blocks[index] for index in watched], tiny.sequences([8, 8]))
    assert ran == [f"block {index}" for index in range(watched[-1] + 1)]
    everything = recorded(module, blocks, tiny.sequences([8, 8]))
    for index, collected in zip(watched, statistics, strict=True):
        assert collected.inputs.keys() == everything[index].inputs.keys()
        for name in collected.inputs:
            assert torch.equal(collected.inputs[name].gram, everything[index].inputs[name].gram)


def test_progress_counts_every_sequence_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers told sum up to the number of sequences."""
    monkeypatch.setattr(recording, "BATCH_TOKENS", 50)
    module = tiny.module(tiny.LAYOUTS["llama"]())
    reports: list[int] = []
    list(record(module, find_blocks(module), tiny.sequences(LENGTHS), reports.append))
    assert sum(reports) == len(LENGTHS)
    assert len(reports) > 1


def test_statistics_bytes_covers_what_is_held() -> None:
    """The memory announced for a block is at least that of its float64 Gram matrices."""
    block = find_blocks(tiny.module(tiny.LAYOUTS["llama"]()))[0]
    widths = [tiny.HIDDEN] * 3 + [tiny.MLP]
    assert statistics_bytes(block) == 8 * sum(width**2 for width in widths) + 4 * tiny.MLP**2
