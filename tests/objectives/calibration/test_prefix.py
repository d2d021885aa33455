"""A prefix is what the model computes block by block: full precision on one side, what was quantized on the other."""

from typing import Any

import pytest
import torch
from torch import Tensor

from objectives.calibration import prefix as prefixes
from objectives.calibration.prefix import QuantizedPrefix
from objectives.calibration.recording import record
from objectives.errors import InputError
from objectives.model.finding import find_blocks
from objectives.model.roles import Block
from objectives.text.sequences import Sequences
from tests.objectives import tiny

TEXT = tiny.sequences((24, 17, 24, 9, 31, 2))
close = {"rtol": 1e-4, "atol": 1e-6}


def read(module: Any, block: Block, text: Sequences) -> dict[str, Tensor]:
    """What the sites of a block read in the whole model, sequence by sequence, `[N, I]`."""
    rows: dict[str, list[Tensor]] = {site.name: [] for site in block.sites}
    handles = [
        site.linears[0].module.register_forward_pre_hook(
            lambda _, args, name=site.name: rows[name].append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for site in block.sites
    ]
    with torch.no_grad():
        for ids in text.ids:
            module(ids[None])
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in rows.items()}


def coarsened(block: Block) -> None:
    """Change the weights of a block, as rounding does."""
    with torch.no_grad():
        for linear in block.linears:
            linear.set_weight((linear.weight() * 16).round() / 16)


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_both_sides_are_what_the_whole_model_computes(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model as it is, the statistics that calibration has; behind a changed block, those of the changed model."""
    monkeypatch.setattr(prefixes, "BATCH_TOKENS", 60)
    module = tiny.module(tiny.LAYOUTS[layout]())
    first, second = find_blocks(module)
    before = tiny.state(module)
    exact = read(module, second, TEXT)
    prefix = QuantizedPrefix(module, [first, second], TEXT)
    assert tiny.same_bits(before, tiny.state(module))
    usual = next(record(module, [first], TEXT, lambda _: None)).inputs
    with torch.inference_mode():
        prefix.enter(first)
        for site in first.sites:
            statistics = prefix.observe(first, site, None)
            assert not statistics.drift.any()
            assert statistics.inputs.tokens == usual[site.name].tokens
            torch.testing.assert_close(statistics.inputs.gram, usual[site.name].gram, **close)
        coarsened(first)
        prefix.advance(first)
        prefix.enter(second)
        observed = {site.name: prefix.observe(second, site, torch.full((site.inputs,), 2.0)) for site in second.sites}
    changed = read(module, second, TEXT)
    for name, statistics in observed.items():
        x, own = exact[name].double() / 2, changed[name].double()
        torch.testing.assert_close(statistics.inputs.gram, (own.T @ own / len(own)).float(), **close)
        torch.testing.assert_close(statistics.drift, ((x - own).T @ own / len(own)).float(), **close)
    prefix.advance(second)


def test_a_model_whose_blocks_are_not_a_chain_is_refused() -> None:
    """One line says what to do instead."""
    module = tiny.module(tiny.LAYOUTS["llama"]())
    first, second = find_blocks(module)
    chain = module.get_submodule(second.name)
    handle = chain.register_forward_pre_hook(lambda _, args: (2 * args[0], *args[1:]))
    with pytest.raises(InputError, match="--prefix full"):
        QuantizedPrefix(module, [first, second], TEXT)
    handle.remove()
