"""Linears that must be stored alike are one site, whatever the layout."""

from dataclasses import replace

import pytest

from objectives.model.finding import find_blocks, named_blocks
from objectives.model.roles import Block, LinearRole
from objectives.model.sites import find_sites
from tests.objectives import tiny

SEPARATE = [("q", "k", "v"), ("o",), ("gate", "up"), ("down",)]
PLAIN = [("q", "k", "v"), ("o",), ("fc1",), ("fc2",)]


def blocks(layout: str) -> list[Block]:
    return find_blocks(tiny.module({**tiny.LAYOUTS, **tiny.MIXTURES}[layout]()))


@pytest.mark.parametrize(
    ("layout", "roles"),
    [(layout, PLAIN if layout in ("opt", "opt-post-norm", "gpt-neox") else SEPARATE) for layout in tiny.LAYOUTS],
)
def test_what_is_fused_or_shares_an_input_is_one_site(layout: str, roles: list[tuple[str, ...]]) -> None:
    """Fused or not, query, key and value are one site, and so are gate and up."""
    found = blocks(layout)
    sites = find_sites(found)
    assert [site.roles for site in sites] == roles * tiny.LAYERS
    assert [site.depth for site in sites] == [depth for depth in range(tiny.LAYERS) for _ in roles]
    assert len({site.name for site in sites}) == len(sites)
    assert [name for site in sites for name in site.linears] == [
        linear.name for block in found for linear in block.linears
    ]


def test_a_site_says_what_it_is() -> None:
    """Its block and roles, its Linears and their shapes."""
    site = find_sites(blocks("llama"))[4]
    assert site.name == "model.layers.1.self_attn.q_proj"
    assert site.linears == tuple(f"model.layers.1.self_attn.{role}_proj" for role in "qkv")
    assert site.shapes == ((64, 64), (32, 64), (32, 64))
    assert site.weights == 128 * 64


@pytest.mark.parametrize("layout", ["mixtral", "qwen3-moe", "qwen2-moe"])
def test_experts_of_a_block_are_one_site(layout: str) -> None:
    """Runtimes have one kernel for all of them; what one norm feeds shares its scale with them."""
    sites = [site for site in find_sites(blocks(layout)) if site.depth == 1]
    routed = [site for site in sites if any(".experts." in name for name in site.linears)]
    assert len(routed) == 1
    shared = layout == "qwen2-moe"
    assert len(routed[0].linears) == 3 * tiny.EXPERTS + 2 * shared
    assert [site.roles for site in sites if site not in routed] == [
        ("q", "k", "v"),
        ("o",),
        *([("down",)] if shared else []),
    ]


def test_many_experts_take_as_many_times_longer() -> None:
    """Each Linear is looked at a few times, not once for each of the others."""
    config = tiny.MIXTURES["qwen3-moe"]()
    config.num_experts, config.moe_intermediate_size = 128, 16
    found = named_blocks(tiny.module(config))
    asked: list[str] = []

    class Counting(LinearRole):
        @property
        def owner(self) -> str:
            asked.append(self.name)
            return super().owner

    counted = [
        replace(
            block,
            sites=tuple(
                replace(site, linears=tuple(Counting(**vars(linear)) for linear in site.linears))
                for site in block.sites
            ),
        )
        for block in found
    ]
    assert len(find_sites(counted)) == len(find_sites(found)) == 3 * tiny.LAYERS
    assert len(asked) <= 3 * sum(1 for block in found for _ in block.linears)
