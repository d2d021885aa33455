"""Spend a budget of bits where they count: one choice per site, of least predicted damage in all.

Responsible for the multiple-choice knapsack alone (Kellerer, Pferschy and Pisinger 2004, Knapsack Problems, ch. 11):
a dynamic programme over bits, solved once for every budget, and the bound of its Lagrangian relaxation. May assume that
damages of sites add up; whoever predicts them checks that. Knows sites and choices by their names.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from quant.errors import QuantizationError

MOST_UNITS = 2**18
"""Of bits that can be told apart: what a table of choices has for each site."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to store a site.

    Attributes:
        name: What it is called.
        bits: Of all its weights.
        damage: Predicted; of any unit in which sites add up.
    """

    name: str
    bits: int
    damage: float


@dataclass(frozen=True, kw_only=True)
class Options:
    """The choices of one site.

    Attributes:
        site: Its name.
        choices: At least one, in any order.

    Raises:
        QuantizationError: Without choices, or with a damage or a size that cannot be one.
    """

    site: str
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        if not self.choices:
            raise QuantizationError(f"{self.site} has no choice; give at least one")
        wrong = [choice.name for choice in self.choices if choice.bits < 0 or not math.isfinite(choice.damage)]
        if wrong:
            raise QuantizationError(f"{', '.join(wrong)} of {self.site}: bits must be from 0 on, and damages finite")

    @property
    def best(self) -> tuple[Choice, ...]:
        """The choices that some budget may ask for, the smallest first: each of less damage than all before it."""
        undominated: list[Choice] = []
        for choice in sorted(self.choices, key=lambda choice: (choice.bits, choice.damage)):
            if not undominated or choice.damage < undominated[-1].damage:
                undominated.append(choice)
        return tuple(undominated)


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """One choice for every site.

    Attributes:
        choices: By site.
        bits: Of all sites.
        damage: Their sum.
        bound: What no allocation of the budget can be below; `damage` where this one is exact.
    """

    choices: Mapping[str, Choice]
    bits: int
    damage: float
    bound: float

    @property
    def gap(self) -> float:
        """By how much, at most, its damage is above the least that there is."""
        return max(0.0, self.damage - self.bound)


class Allocator:
    """Everything that budgets can buy: solved once, asked for any budget."""

    def __init__(self, options: Sequence[Options], most_units: int = MOST_UNITS) -> None:
        """Solve for every budget.

        Args:
            options: Of all sites.
            most_units: Sizes are exact where they are all multiples of no more units than that above the smallest
                plan; otherwise they are rounded up to such units, and `Allocation.gap` says what that may cost.

        Raises:
            QuantizationError: Without sites, or with two of one name.
        """
        names = [site.site for site in options]
        if not names or len(set(names)) < len(names):
            raise QuantizationError("an allocation needs sites, each of a name of its own")
        self._sites = {site.site: site.best for site in options}
        self.smallest = sum(choices[0].bits for choices in self._sites.values())
        self.largest = sum(choices[-1].bits for choices in self._sites.values())
        above = [choice.bits - choices[0].bits for choices in self._sites.values() for choice in choices[1:]]
        common = math.gcd(*above) or 1
        # Rounding up adds less than a unit for each site, so the whole range and these have to fit.
        self._unit = max(common, -(-(self.largest - self.smallest) // max(1, most_units - len(names))))
        self.exact = self._unit == common
        self._table, self._damages = self._solved()

    def at(self, budget: int) -> Allocation:
        """The allocation of least damage that takes at most `budget` bits; of those, one of fewest bits.

        Raises:
            QuantizationError: If the budget is below the smallest plan.
        """
        if budget < self.smallest:
            raise QuantizationError(f"{budget} bits are below the {self.smallest} of the smallest plan")
        units = min((budget - self.smallest) // self._unit, len(self._damages) - 1)
        # Damages fall along the table: the first of equal ones takes the fewest bits.
        units = int(torch.searchsorted(-self._damages, -self._damages[units]))
        choices: dict[str, Choice] = {}
        for name, row in zip(reversed(self._sites), reversed(self._table), strict=True):
            choice = self._sites[name][int(row[units])]
            choices[name] = choice
            units -= self._units(name, choice)
        chosen = {name: choices[name] for name in self._sites}
        damage = math.fsum(choice.damage for choice in chosen.values())
        bound = damage if self.exact else min(damage, self.relaxed(budget))
        return Allocation(
            choices=chosen, bits=sum(choice.bits for choice in chosen.values()), damage=damage, bound=bound
        )

    def front(self) -> list[tuple[int, float]]:
        """Every size that is worth its bits, with its damage, from the smallest on; where inexact, at most the size."""
        falls = torch.cat([torch.ones(1, dtype=torch.bool), self._damages[1:] < self._damages[:-1]]).nonzero()[:, 0]
        bits = (self.smallest + falls * self._unit).tolist()
        return list(zip(bits, self._damages[falls].tolist(), strict=True))

    def relaxed(self, budget: int) -> float:
        """Bound the damage at `budget` bits from below, by choices that may be mixed (the linear relaxation).

        Each site's choices are on their lower convex hull, and steps along it are bought by what they save per bit
        (Sinha and Zoltners 1979, Operations Research 27).
        """
        left = budget - self.smallest
        damage = math.fsum(choices[0].damage for choices in self._sites.values())
        for bits, saved in sorted(self._steps(), key=lambda step: -step[1] / step[0]):
            if bits >= left:
                return damage - saved * left / bits
            left, damage = left - bits, damage - saved
        return damage

    def _steps(self) -> Iterator[tuple[int, float]]:
        """Yield the steps along the sites' convex hulls: what each takes, and the damage that it saves."""
        for choices in self._sites.values():
            hull: list[Choice] = []
            for choice in choices:
                while len(hull) > 1 and _saving(hull[-2], hull[-1]) <= _saving(hull[-2], choice):
                    hull.pop()
                hull.append(choice)
            yield from ((after.bits - before.bits, before.damage - after.damage) for before, after in pairwise(hull))

    def _units(self, site: str, choice: Choice) -> int:
        """Count the units that a choice takes above the smallest one of its site."""
        return -(-(choice.bits - self._sites[site][0].bits) // self._unit)

    def _solved(self) -> tuple[list[Tensor], Tensor]:
        """Fill the table: for each site and each number of units that it and those before it may take, its choice.

        Returns:
            int16 `[units + 1]` for each site, and the least damage of all sites, float64 `[units + 1]`.
        """
        largest = sum(self._units(name, choices[-1]) for name, choices in self._sites.items())
        damages = torch.zeros(largest + 1, dtype=torch.float64)
        table = []
        for name, choices in self._sites.items():
            # The smallest choice fits wherever those before it do.
            best = damages + choices[0].damage
            chosen = torch.zeros(largest + 1, dtype=torch.int16)
            for index, choice in enumerate(choices[1:], 1):
                units = self._units(name, choice)
                other = damages[: largest + 1 - units] + choice.damage
                better = other < best[units:]
                best[units:] = torch.where(better, other, best[units:])
                chosen[units:] = torch.where(better, torch.full_like(chosen[units:], index), chosen[units:])
            damages = best
            table.append(chosen)
        return table, damages


def _saving(before: Choice, after: Choice) -> float:
    """What a step saves per bit."""
    return (before.damage - after.damage) / (after.bits - before.bits)
