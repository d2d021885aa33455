"""The front of bytes and damage: its levels, its hypervolume, and what settings may be expected to add to it."""

import math

import numpy as np
import pytest

from hpo.search.front import expected_hypervolume, hypervolume, least, levels
from hpo.space.size_class import SizeClass

BUDGETS = [4.0, 4.5, 5.0, 5.5]


def budget(bits: float) -> SizeClass:
    return SizeClass(group_size=None, bit_budget=bits)


def test_what_a_budget_holds_is_held_by_every_larger_one() -> None:
    """A small plan that is better than a large one is the front there, too."""
    bests = least([(budget(4.5), 0.3), (budget(4.5), 0.2), (budget(5.0), 0.25), (budget(5.5), 0.1)])
    assert bests[budget(4.5)] == 0.2
    assert levels(BUDGETS, bests).tolist() == [math.inf, 0.2, 0.2, 0.1]
    assert hypervolume(BUDGETS, bests, 0.5) == pytest.approx(0.3 + 0.3 + 0.4)
    assert hypervolume(BUDGETS, {}, 0.5) == 0


def test_the_expected_hypervolume_is_the_mean_of_what_draws_add() -> None:
    """Against a hundred thousand draws of each setting's value."""
    bests = {budget(4.0): 0.5, budget(5.0): 0.3}
    size_classes = [budget(4.0), budget(4.5), budget(5.5)]
    mean, deviation = np.array([0.45, 0.4, 0.25]), np.array([0.1, 0.05, 0.1])
    expected = expected_hypervolume(BUDGETS, bests, size_classes, mean, deviation)
    generator = np.random.default_rng(0)
    for place, size_class in enumerate(size_classes):
        drawn = generator.normal(mean[place], deviation[place], 100_000)
        gained = [
            hypervolume(BUDGETS, least([*bests.items(), (size_class, value)]), 0.5) - hypervolume(BUDGETS, bests, 0.5)
            for value in drawn[:20_000]
        ]
        assert expected[place] == pytest.approx(np.mean(gained), rel=0.05)


def test_a_budget_that_nothing_was_measured_for_is_worth_looking_at() -> None:
    """More than one whose level is expected already."""
    bests = {budget(4.5): 0.2}
    mean, deviation = np.array([0.3, 0.2]), np.array([0.02, 0.02])
    unknown, known = expected_hypervolume(BUDGETS, bests, [budget(4.0), budget(4.5)], mean, deviation)
    assert known == pytest.approx(3 * 0.02 / math.sqrt(2 * math.pi))
    alone = expected_hypervolume(BUDGETS, bests, [budget(4.0)], np.array([0.3]), np.array([0.02]))[0]
    assert unknown == pytest.approx(alone) == pytest.approx(0.02 / math.sqrt(2 * math.pi), rel=1e-3)
    assert expected_hypervolume(BUDGETS, bests, [budget(4.0)], np.array([0.1]), np.array([0.02]))[0] > 0.3


def test_budgets_hold_smaller_ones_and_uniform_sizes_only_themselves() -> None:
    """A group size is no budget."""
    assert budget(4.5).holds(budget(4.5))
    assert budget(4.5).holds(budget(4.0))
    assert not budget(4.5).holds(budget(5.0))
    assert not budget(4.5).holds(SizeClass(group_size=128))
    assert SizeClass(group_size=64).holds(SizeClass(group_size=64))
    assert not SizeClass(group_size=64).holds(SizeClass(group_size=128))
