"""A budget of bytes or bits, and the plan that spends it best.

Responsible for what a person may call a budget, for its limits, and for the way from sensitivities to a plan. May
assume that the bench was laid out.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from objectives.errors import InputError
from objectives.model.roles import Block
from objectives.model.sites import find_sites
from objectives.progress import Progress
from objectives.quantization import model_size
from objectives.sensitivity import Sensitivities, measure_sensitivities, plans_by_way, site_settings
from objectives.trial import Bench
from quant.allocation import Allocation, Allocator
from quant.plan import Plan
from quant.setting import UNQUANTIZED, Setting
from quant.sizes import ModelSize
from storage.results import ResultStore

UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}
AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?B)?", re.IGNORECASE)
WORDS = "give bits per weight of the decoder blocks, such as {}, or the size of the whole model, such as {}MB"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a quantized model may take: one of the two.

    Attributes:
        bits_per_weight: Over the weights of the decoder blocks.
        model_bytes: Of the whole model, embeddings and head included.
    """

    bits_per_weight: float | None = None
    model_bytes: float | None = None

    def __str__(self) -> str:
        if self.model_bytes is None:
            return f"{self.bits_per_weight:g} bits per weight"
        return f"{self.model_bytes / 1e6:.2f} MB"

    def bits(self, size: ModelSize) -> float:
        """Return it as bits per weight of a model of which this is some size."""
        if self.bits_per_weight is not None:
            return self.bits_per_weight
        assert self.model_bytes is not None
        return size.bits_per_weight + 8 * (self.model_bytes - size.model_bytes) / size.weights

    def spare(self, size: ModelSize) -> int:
        """Return how many bits a model of this size leaves of the budget; negative where it exceeds it."""
        if self.bits_per_weight is not None:
            bits = (self.bits_per_weight - size.bits_per_weight) * size.weights
        else:
            assert self.model_bytes is not None
            bits = 8 * (self.model_bytes - size.model_bytes)
        # A whole number of bits, but for the rounding of what is given per weight.
        return math.floor(bits + 0.01)


def parse_budget(text: str) -> Budget:
    """Read a budget: `4.25` bits per weight, or `110MB` for the whole model.

    Raises:
        InputError: If it is neither.
    """
    match = AMOUNT.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise InputError(f"the budget {text!r} cannot be read; {WORDS.format(4.25, 110)}")
    if match[2] is None:
        return Budget(bits_per_weight=float(match[1]))
    return Budget(model_bytes=float(match[1]) * UNITS[match[2].upper()])


@dataclass(frozen=True, kw_only=True)
class Allocated:
    """A budget that was spent.

    Attributes:
        plan: The plan of least predicted divergence.
        allocation: What was chosen for each site, and how far from the least that can be.
        sensitivities: What it was made from.
        front: Bits of all sites and predicted divergence of every plan that is worth its bits.
    """

    plan: Plan
    allocation: Allocation
    sensitivities: Sensitivities
    front: Sequence[tuple[int, float]]

    @property
    def note(self) -> str:
        """Say what is expected of it."""
        gap = f", at most {self.allocation.gap:.2g} above the least" if self.allocation.gap else ""
        return (
            f"bits are allocated to {len(self.sensitivities.sites)} sites by what each loses, measured on "
            f"{self.sensitivities.tokens} tokens of calibration text; predicted KL {self.allocation.damage:.4f}{gap}"
        )


def allocate(bench: Bench, recipe: Setting, budget: Budget, store: ResultStore, progress: Progress) -> Allocated:
    """Spend a budget on the sites of a model, each quantized by a recipe in the bits that it gets.

    Raises:
        InputError: If the budget is below the smallest or above the largest plan, naming both, or if the recipe cannot
            be allocated bits or does not suit the model or the text.
        RunError: If sites cannot be measured.
    """
    smallest = require_affordable(bench, recipe, budget)
    sensitivities = measure_sensitivities(bench, recipe, store, progress)
    allocator = Allocator(sensitivities.options)
    allocation = allocator.at(allocator.smallest + budget.spare(smallest))
    return Allocated(
        plan=sensitivities.plan(allocation.choices),
        allocation=allocation,
        sensitivities=sensitivities,
        front=allocator.front(),
    )


def require_affordable(bench: Bench, recipe: Setting, budget: Budget) -> ModelSize:
    """Return the size of the smallest plan of a recipe, which a budget has to hold.

    Raises:
        InputError: If the budget is below it or above the largest plan, naming both, or if the recipe cannot be
            allocated bits.
    """
    smallest, largest = size_limits(bench, recipe)
    if budget.spare(smallest) < 0 or budget.spare(largest) > 0:
        remedy = WORDS.format(
            _within(smallest.bits_per_weight, largest.bits_per_weight),
            _within(smallest.model_bytes / 1e6, largest.model_bytes / 1e6),
        )
        raise InputError(
            f"{budget} cannot be allocated: plans take from {size_text(smallest)} to {size_text(largest)}; {remedy}"
        )
    return smallest


def _within(least: float, most: float) -> str:
    """Write a size between two, a tenth of the way from the smaller one, as it can be typed."""
    return f"{math.ceil((least + (most - least) / 10) * 100) / 100:.2f}"


def size_limits(bench: Bench, recipe: Setting) -> tuple[ModelSize, ModelSize]:
    """Return the sizes of the smallest and of the largest plan of a recipe.

    Raises:
        InputError: If it cannot be allocated bits.
    """
    ways = {site: site_settings(recipe, site) for site in find_sites(bench.blocks)}
    smallest, largest = (
        Plan(named={name: settings[place] for site, settings in ways.items() for name in site.linears})
        for place in (0, -1)
    )
    return model_size(bench.model, bench.blocks, smallest), model_size(bench.model, bench.blocks, largest)


def possible_plans(recipe: Setting, blocks: Sequence[Block]) -> Iterator[Plan]:
    """Yield plans that show all that a budget may make of a recipe: what loads these loads every allocation.

    The first has every setting that there is, and any Linear in 16 bit; in the others, every site has one way after
    the other.

    Raises:
        InputError: If the recipe cannot be allocated bits.
    """
    ways = {site: site_settings(recipe, site) for site in find_sites(blocks)}
    settings = dict.fromkeys(setting for offered in ways.values() for setting in offered)
    # Under names that no model has: each setting may be that of any Linear, and need not be.
    named = {str(number): setting for number, setting in enumerate(settings)}
    yield Plan(named=named, others=replace(recipe, bits=UNQUANTIZED))
    yield from plans_by_way(ways)


def size_text(size: ModelSize) -> str:
    """Write a size in both of the units that budgets have."""
    return f"{size.bits_per_weight:.3f} bits per weight ({size.model_bytes / 1e6:.2f} MB)"
