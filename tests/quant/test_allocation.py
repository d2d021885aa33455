"""Bits go where they count: the least damage that a budget can buy, against every combination there is."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.allocation import Allocator, Choice, Options
from quant.errors import QuantizationError

damages = st.floats(0, 1, allow_subnormal=False)
sites = st.lists(st.lists(st.tuples(st.integers(0, 40), damages), min_size=1, max_size=4), min_size=1, max_size=4).map(
    lambda drawn: [options(f"site {number}", choices) for number, choices in enumerate(drawn)]
)


def options(site: str, choices: list[tuple[int, float]]) -> Options:
    return Options(
        site=site,
        choices=tuple(
            Choice(name=str(place), bits=bits, damage=damage) for place, (bits, damage) in enumerate(choices)
        ),
    )


def every(made: list[Options]) -> list[tuple[int, float]]:
    """Bits and damage of every combination."""
    combinations = itertools.product(*(site.choices for site in made))
    return [(sum(one.bits for one in taken), math.fsum(one.damage for one in taken)) for taken in combinations]


def least(made: list[Options], budget: int) -> float:
    return min(damage for bits, damage in every(made) if bits <= budget)


@given(sites, st.integers(0, 160))
def test_no_combination_of_the_budget_has_less_damage(made: list[Options], budget: int) -> None:
    """Exact, whatever the sizes; choices and sums are what they say."""
    allocator = Allocator(made)
    if budget < allocator.smallest:
        with pytest.raises(
            QuantizationError, match=f"{budget} bits are below the {allocator.smallest} of the smallest"
        ):
            allocator.at(budget)
        return
    allocation = allocator.at(budget)
    assert allocator.exact
    assert allocation.gap == 0
    assert allocation.damage == pytest.approx(least(made, budget), abs=1e-12)
    assert allocation.bits == sum(choice.bits for choice in allocation.choices.values()) <= budget
    assert list(allocation.choices) == [site.site for site in made]
    assert all(allocation.choices[site.site] in site.choices for site in made)


@given(sites, st.integers(0, 160))
def test_rounded_sizes_stay_within_budget_and_gap(made: list[Options], budget: int) -> None:
    """Where there are too few units the plan is one of the budget, and the least damage is within its gap."""
    allocator = Allocator(made, most_units=7)
    if budget >= allocator.smallest:
        allocation = allocator.at(budget)
        assert allocation.bits <= budget
        assert allocation.bound - 1e-12 <= least(made, budget) <= allocation.damage + 1e-12
        assert allocation.gap == pytest.approx(allocation.damage - allocation.bound)


@given(sites, st.integers(0, 160))
def test_mixed_choices_bound_every_plan(made: list[Options], budget: int) -> None:
    """The relaxation is never above the least damage, and exact where everything is affordable."""
    allocator = Allocator(made)
    if budget >= allocator.smallest:
        assert allocator.relaxed(budget) <= least(made, budget) + 1e-12
    assert allocator.relaxed(allocator.largest) == pytest.approx(least(made, allocator.largest), abs=1e-12)


@given(sites)
def test_the_front_is_all_that_is_worth_its_bits(made: list[Options]) -> None:
    """It is that of all combinations, and each of its points is what its size gives."""
    allocator = Allocator(made)
    front = allocator.front()
    assert (front[0][0], front[-1][1]) == (allocator.smallest, pytest.approx(least(made, 10**6), abs=1e-12))
    for bits, damage in front:
        allocation = allocator.at(bits)
        assert (allocation.bits, allocation.damage) == (bits, pytest.approx(damage, abs=1e-12))
    assert [bits for bits, _ in front] == sorted({bits for bits, _ in front})
    for bits, damage in every(made):
        assert any(size <= bits and best <= damage + 1e-12 for size, best in front)


def test_a_fragile_site_gets_the_bits() -> None:
    """Of two sites of equal size, the one that is hurt more; a fragile small one before a robust large one."""
    made = [options("robust", [(4, 0.1), (8, 0.05)]), options("fragile", [(4, 1.0), (8, 0.1)])]
    allocation = Allocator(made).at(12)
    assert {site: choice.bits for site, choice in allocation.choices.items()} == {"robust": 4, "fragile": 8}
    assert allocation.damage == pytest.approx(0.2)


def test_more_than_it_can_use_is_not_used() -> None:
    """Larger choices that help nothing are never taken; limits are those of what helps."""
    made = [options("site", [(4, 0.5), (8, 0.1), (16, 0.1), (6, 0.7)])]
    allocator = Allocator(made)
    assert (allocator.smallest, allocator.largest) == (4, 8)
    assert allocator.at(100).bits == 8
    assert allocator.front() == [(4, 0.5), (8, 0.1)]


def test_a_model_of_many_blocks_is_solved_exactly() -> None:
    """32 blocks of four sites and five choices each, of a large model's sizes."""
    shapes = {"q+k+v": 6144 * 4096, "o": 4096 * 4096, "gate+up": 2 * 14336 * 4096, "down": 14336 * 4096}
    bits = (4.125, 4.25, 4.5, 8.125, 16)
    made = [
        options(f"{block} {role}", [(int(size * each), (block + 1) * 4.0**-each) for each in bits])
        for block in range(32)
        for role, size in shapes.items()
    ]
    allocator = Allocator(made)
    assert allocator.exact
    weights = 32 * sum(shapes.values())
    allocation = allocator.at(int(4.3 * weights))
    assert 4.29 < allocation.bits / weights <= 4.3
    assert allocation.damage - allocator.relaxed(int(4.3 * weights)) < 0.001 * allocation.damage


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Allocator([]), "needs sites"),
        (lambda: Allocator([options("a", [(1, 0)]), options("a", [(1, 0)])]), "a name of its own"),
        (lambda: options("a", []), "a has no choice"),
        (lambda: options("a", [(4, 0.1), (8, math.nan)]), "1 of a: bits must be from 0 on, and damages finite"),
        (lambda: options("a", [(-4, 0.1)]), "0 of a: bits must be"),
    ],
)
def test_what_cannot_be_allocated_is_refused(made: object, said: str) -> None:
    """In one line."""
    with pytest.raises(QuantizationError, match=said):
        made()  # type: ignore[operator]
