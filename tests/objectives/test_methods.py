"""Every method, on what a trained model's first block really reads: the literal reference gives the same."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from objectives.calibration.calibration import Calibration
from objectives.calibration.recording import BlockStatistics
from objectives.model.finding import find_blocks
from objectives.model.loading import Model
from objectives.model.roles import Block, InputSite
from objectives.progress import silent
from objectives.text.sequences import Sequences, TextPlan, prepare_text
from quant.linears import LinearInput, LinearSet
from quant.methods import METHODS
from quant.statistics import OutputStatistics
from storage.cache import TensorCache
from storage.paths import Paths
from tests.quant import reference
from tests.quant.agreement import assert_same, run

ROWS = 8
"""Outputs of each Linear that are compared: the reference takes its time with all of them."""


@pytest.fixture(scope="module")
def block(bundled: Model) -> Block:
    return find_blocks(bundled.module)[0]


@pytest.fixture(scope="module")
def text(bundled: Model) -> Sequences:
    plan = TextPlan(source="bundled:docstrings", part="calibration", count=2, length=24)
    return prepare_text([plan, replace(plan, part="tuning")], bundled.tokenizer)[0]


@pytest.fixture(scope="module")
def statistics(
    bundled: Model, block: Block, text: Sequences, tmp_path_factory: pytest.TempPathFactory
) -> BlockStatistics:
    """What calibration keeps of the block, read back from its cache."""
    cache = TensorCache(Paths(tmp_path_factory.mktemp("cache")))
    calibration = Calibration(bundled, [block], text, cache)
    calibration.ensure([len(text)], silent)
    return calibration.read(block, len(text))


@pytest.fixture(scope="module")
def rows(bundled: Model, block: Block, text: Sequences) -> Mapping[str, Tensor]:
    """What the Linears of each site read, `[tokens, I]`, seen by a hook of this test."""
    seen: dict[str, list[Tensor]] = {site.name: [] for site in block.sites}
    with ExitStack() as stack, torch.inference_mode():
        for site in block.sites:
            handle = site.linears[0].module.register_forward_pre_hook(
                lambda _, given, name=site.name: seen[name].append(given[0].flatten(0, 1))
            )
            stack.callback(handle.remove)
        for ids in text.ids:
            bundled.module(ids[None])
    return {name: torch.cat(parts) for name, parts in seen.items()}


def as_reference(site: InputSite, x: Tensor) -> reference.Layers:
    """The first rows of a site's Linears, as the reference wants them."""
    tie = site.tie
    return reference.Layers(
        layers=tuple(
            reference.Layer(
                name=linear.name,
                role="attention" if site.kind == "attention" else linear.role,
                weight=linear.weight()[:ROWS],
                bias=torch.zeros(ROWS),
            )
            for linear in site.linears
        ),
        inputs=x,
        activation=reference.silu,
        tie=None if tie is None else (tie.kv_heads, tie.repeats, tie.head_dim),
    )


def as_linear_set(site: InputSite, statistics: BlockStatistics) -> LinearSet:
    """The same rows, with the statistics that calibration recorded of them."""

    def cut(outputs: OutputStatistics) -> OutputStatistics:
        vectors = {f.name: getattr(outputs, f.name)[:ROWS] for f in fields(outputs) if f.name != "tokens"}
        return replace(outputs, **vectors)

    return LinearSet(
        linears=tuple(
            LinearInput(name=linear.name, weight=linear.weight()[:ROWS], outputs=cut(statistics.outputs[linear.name]))
            for linear in site.linears
        ),
        kind=site.kind,
        inputs=statistics.inputs[site.name],
        folds=site.folds,
        tie=site.tie,
    )


def rules_of(method: str) -> Iterator[reference.Rules]:
    common = {"beta": 0.6, "tau": 0.2, "n_grid": 3, "group_size": 64, "keep_ratio": 0.4}
    yield reference.Rules(method=method, sharing="foldable", symmetric=False, **common)
    yield reference.Rules(method=method, sharing="linear", symmetric=True, placement="structural", **common)


@pytest.mark.parametrize("method", METHODS)
def test_method_equals_reference_on_real_activations(
    method: str, block: Block, statistics: BlockStatistics, rows: Mapping[str, Tensor]
) -> None:
    """Recorded, cached and searched, a method gives what the literal formulas give on the rows themselves."""
    for rules in rules_of(method):
        for site in block.sites:
            expected = reference.quantize(as_reference(site, rows[site.name]), rules)
            for found, wanted in zip(run(as_linear_set(site, statistics), rules), expected, strict=True):
                assert_same(found, wanted, torch.float32, rules.n_grid)


def test_the_reference_reads_what_the_block_read(
    text: Sequences, block: Block, statistics: BlockStatistics, rows: Mapping[str, Tensor], tmp_path: Path
) -> None:
    """The rows that are compared on are those of all calibration tokens, and differ from site to site."""
    tokens = sum(map(len, text.ids))
    assert {len(x) for x in rows.values()} == {tokens}
    assert {statistics.inputs[site.name].tokens for site in block.sites} == {tokens}
    assert len({float(x.abs().sum()) for x in rows.values()}) == len(block.sites) == 4
