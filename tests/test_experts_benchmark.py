"""The benchmark of experts compares what it says: each way reads the statistics that its name promises."""

import torch

from benchmarks.experts import ways
from objectives.calibration.entries import with_packed_grams
from objectives.calibration.recording import BlockStatistics, record
from objectives.calibration.shrinking import shrunk_block
from objectives.model.finding import find_blocks
from objectives.model.roles import Block
from tests.objectives import tiny
from tests.objectives.tiny import MIXTURES

NAME = "model.layers.0.mlp.experts"
READ, HIDDEN = f"{NAME}.1:gate+up", f"{NAME}.1:down"


def recorded() -> tuple[Block, BlockStatistics]:
    module = tiny.module(MIXTURES["mixtral"]())
    block = find_blocks(module)[0]
    (statistics,) = record(module, [block], tiny.sequences([24, 17]), lambda _: None)
    return block, with_packed_grams(statistics)


def test_the_first_way_is_what_others_are_compared_with() -> None:
    """Nothing is shrunk there; every κ is a way, and so are its parts where they are asked for."""
    names = [way.name for way in ways([0.25, 1], apart=False)]
    assert names == ["own", "kappa 0.25", "kappa 1", "kappa 1 by number", "pool", "route-all"]
    apart = {way.name for way in ways([1], apart=True)} - {way.name for way in ways([1], apart=False)}
    assert apart == {"kappa 1 gate+up", "kappa 1 down"}


def test_each_way_shrinks_what_it_says() -> None:
    """At κ 1 for each input as the product does; in parts, and by number, otherwise."""
    block, own = recorded()
    read = {way.name: way.shrunk(block, own) for way in ways([1], apart=True)}
    product = shrunk_block(block, own)

    def same(way: str, site: str, expected: BlockStatistics) -> bool:
        return torch.equal(read[way].inputs[site].gram, expected.inputs[site].gram)

    assert same("own", READ, own)
    assert same("own", HIDDEN, own)
    assert same("kappa 1", READ, product)
    assert same("kappa 1", HIDDEN, product)
    assert same("kappa 1 gate+up", READ, product)
    assert same("kappa 1 gate+up", HIDDEN, own)
    assert same("kappa 1 down", READ, own)
    assert same("kappa 1 down", HIDDEN, product)
    assert same("kappa 1 by number", READ, product)
    assert not same("kappa 1 by number", HIDDEN, product)
    assert not same("kappa 1 by number", HIDDEN, own)
    pooled = [read["pool"].inputs[f"{NAME}.{number}:gate+up"].gram for number in (0, 1)]
    torch.testing.assert_close(*pooled)
