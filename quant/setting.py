"""The setting that says how a model is quantized: a method, and the parameters that it reads.

Responsible for checking every value against the table of parameters, and for what follows from a setting alone: its
scheme, its label, which other settings it equals.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch

from quant.errors import QuantizationError
from quant.methods import METHODS, Method
from quant.parameters import PARAMETERS, Parameters, Range
from quant.recipes import recipe_name
from quant.rounding.rounding import ROUNDINGS
from quant.scheme import Scheme, scale_type

UNQUANTIZED = 16
"""Bits of weights that are left as they are."""


@dataclass(frozen=True, kw_only=True)
class Setting(Parameters):
    """How to quantize a model: a method and its parameters, whose meaning `quant.parameters` has.

    Raises:
        QuantizationError: With one line naming every value outside its range.
    """

    def __post_init__(self) -> None:
        problems = [
            f"{name} {value!r} is unknown; choose one of {', '.join(names)}"
            for name, value, names in (("method", self.method, METHODS), ("rounding", self.rounding, ROUNDINGS))
            if value not in names
        ]
        problems += [
            problem
            for name, parameter in PARAMETERS.items()
            if (problem := parameter.problem(getattr(self, name))) is not None
        ]
        if problems:
            raise QuantizationError("; ".join(problems))

    @property
    def definition(self) -> Method:
        """The method this setting applies."""
        return METHODS[self.method]

    @property
    def reads(self) -> frozenset[str]:
        """Every field that the quantized weights depend on: the method's own, and what its ingredients read.

        Bits and prefix are among them where they are not the usual ones, so that what is stored without them keeps its
        meaning. A bit budget decides about the groups of each Linear itself.
        """
        if self.is_unquantized:
            return frozenset({"bits"})
        by_bits = {"bits"} if self.bits != Parameters.bits else set()
        by_rounding = {"damping", "n_calib"} if self.rounding == "gptq" else set()
        if self.rounding == "gptq" and self.prefix != Parameters.prefix:
            by_rounding |= {"prefix"}
        by_ranges = {"n_calib"} if self.range_search != "none" else set()
        if self.range_search != "none" and self.definition.salience is not None:
            by_ranges |= {"alpha_proxy"}
        by_grid = {"full_range"} if self.symmetric else set()
        reads = self.definition.reads | by_bits | by_rounding | by_ranges | by_grid
        return reads - {"group_size"} | {"bit_budget"} if self.is_allocated else reads

    @property
    def is_unquantized(self) -> bool:
        """Whether weights stay as they are, in 16 bit; they still take the scales of what reads their outputs."""
        return self.bits == UNQUANTIZED

    @property
    def is_allocated(self) -> bool:
        """Whether it stands for a plan, in which Linears are stored in different ways under a budget of bits."""
        return self.bit_budget > 0

    @property
    def recipe(self) -> "Setting":
        """The setting that quantizes a Linear, whatever it is stored as: itself without a budget."""
        return replace(self, bit_budget=0.0)

    @property
    def follows_prefix(self) -> bool:
        """Whether inputs are those that the quantized blocks before give."""
        return "prefix" in self.reads

    @property
    def scales_at_run_time(self) -> bool:
        """Whether inputs have to be divided by a scale where the model runs: one of its own for every Linear."""
        return self.scales == "linear" and self.definition.salience is not None and not self.is_unquantized

    def scheme(self, dtype: torch.dtype) -> Scheme:
        """The scheme for weights of a model that is stored in `dtype`.

        Raises:
            QuantizationError: If they are left as they are.
        """
        return Scheme(
            bits=self.bits,
            group_size=None if self.definition.per_row else self.group_size,
            symmetric=self.symmetric,
            full_range=self.symmetric and self.full_range,
            scale_dtype=scale_type(dtype),
        )

    @property
    def stored_as(self) -> str:
        """What weights become, in a few words: `4 bit g64`, `8 bit per row asym`, `16 bit`."""
        if self.is_unquantized:
            return f"{self.bits} bit"
        groups = "per row" if self.definition.per_row else f"g{self.group_size}"
        return f"{self.bits} bit {groups}{'' if self.symmetric else ' asym'}"

    def kept_rows(self, outputs: int) -> int:
        """How many of a Linear's `outputs` rows stay in 16 bit: the nearest whole number, halves rounded up."""
        keeps = self.definition.keeps_rows and not self.is_unquantized
        return math.floor(self.keep_ratio * outputs + 0.5) if keeps else 0

    def canonical(self) -> "Setting":
        """The same setting with every field that it does not read at its default: equal work, equal value."""
        reads = self.reads
        unread = {field.name: field.default for field in fields(self) if field.name not in reads}
        return replace(self, **unread)  # type: ignore[arg-type]

    def label(self) -> str:
        """The recipe with the parameters it reads, for tables: `gw-awq+range+gptq n_grid=20 damping=0.05`."""
        if self.is_unquantized:
            return f"{self.bits} bit"
        others = (name for name in ("damping", "bits", "bit_budget") if name in self.reads)
        names = [*self.definition.parameters, *others]
        return " ".join([recipe_name(self), *(f"{name}={getattr(self, name):g}" for name in names)])

    def read_values(self) -> dict[str, object]:
        """The values of the fields that it reads, by name: all that its weights depend on."""
        reads = self.reads
        return {name: value for name, value in self.as_dict().items() if name in reads}

    def as_dict(self) -> dict[str, object]:
        """Every field by name, JSON-able."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def unread_numbers(settings: Sequence[Setting], names: Iterable[str]) -> list[str]:
    """Say of every number among these fields that none of the settings reads it, and what to do.

    Names and truths are left out: a study is given all of them, whatever its method is.
    """
    read = frozenset[str]().union(*(setting.reads for setting in settings))
    return [
        f"{_who_reads_not(settings, name)} {name}; leave {PARAMETERS[name].flag} out{_in_groups(settings, name)}"
        for name in names
        if isinstance(PARAMETERS[name].search, Range) and name not in read
    ]


def _who_reads_not(settings: Sequence[Setting], name: str) -> str:
    if all(setting.is_unquantized for setting in settings):
        return f"--bits {UNQUANTIZED} does not read"
    if name == "damping":
        return f"{' and '.join(dict.fromkeys(setting.rounding for setting in settings))} rounding does not read"
    methods = list(dict.fromkeys(setting.method for setting in settings))
    return f"none of {', '.join(methods)} reads" if len(methods) > 1 else f"{methods[0]} does not read"


def _in_groups(settings: Sequence[Setting], name: str) -> str:
    """Name the method that reads a group size and does the same, where there is one."""
    others = dict.fromkeys(setting.definition.in_groups for setting in settings if setting.definition.in_groups)
    if name != "group_size" or not others:
        return ""
    return f", or give --method {' or '.join(others)}, the same in groups"


RECIPE = "recommended-recipe"
"""The preset of the ingredients that are best on the models that were measured (docs/recipes.md)."""
PRESETS = {
    "balanced": Setting(beta=0.5, tau=2.0),
    "awq-leaning": Setting(beta=0.3, tau=2.5),
    "praq-leaning": Setting(beta=0.7, tau=1.5),
    "conservative": Setting(beta=0.4, tau=3.0),
    RECIPE: Setting(
        beta=0.0,
        tau=5.0,
        symmetric=False,
        full_range=True,
        range_search="diagonal",
        alpha_proxy="range",
        rounding="gptq",
    ),
}
