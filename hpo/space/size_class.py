"""What may be compared with what: settings whose quantized weights take equally many bits.

Responsible for the size class of a setting, by which trials are pruned, ranked and shown. Knows settings alone: of one
model under one kind of scale sharing, equal size classes are equal bits per weight.
"""

from dataclasses import dataclass

from quant.setting import Setting

# The fields of a setting that decide it.
SIZE_CLASS_FIELDS = ("symmetric", "group_size", "keep_ratio", "bit_budget")


@dataclass(frozen=True, kw_only=True)
class SizeClass:
    """What a setting's bits depend on.

    Attributes:
        group_size: Inputs that share a scale; None is one scale per output row.
        keep_ratio: Share of the rows in 16 bit; 0 where the method keeps none.
        symmetric: False where every scale has a zero point beside it; True of a plan, whose budget counts them.
        bit_budget: Most bits per weight of a plan, which has groups of several sizes; 0 where all Linears are alike.
    """

    group_size: int | None
    keep_ratio: float = 0.0
    symmetric: bool = True
    bit_budget: float = 0.0

    @property
    def order(self) -> tuple[int, float, float, bool]:
        """For sorting: smaller groups first, then rows with one scale, fewer kept ones and smaller budgets first."""
        return self.group_size or 2**31, self.keep_ratio, self.bit_budget, self.symmetric

    def holds(self, other: "SizeClass") -> bool:
        """Tell whether what is of the other class is allowed here: equal bits, or a budget that is no larger."""
        return self == other or 0 < other.bit_budget <= self.bit_budget

    @property
    def short(self) -> str:
        """What it is called where there is little room: `g64`, `g64 asym`, `per row`, `keep 0.2`, `4.25 bits`."""
        if self.bit_budget:
            return f"{self.bit_budget:g} bits"
        rows = f"keep {self.keep_ratio:g}" if self.keep_ratio else "per row"
        return (rows if self.group_size is None else f"g{self.group_size}") + ("" if self.symmetric else " asym")

    def __str__(self) -> str:
        if self.bit_budget:
            return f"plans of {self.bit_budget:g} bits per weight"
        kept = f", {100 * self.keep_ratio:g} % of rows in 16 bit" if self.keep_ratio else ""
        grouping = "one scale per row" if self.group_size is None else f"group size {self.group_size}"
        return grouping + kept + ("" if self.symmetric else ", asymmetric")


def size_class_of(setting: Setting) -> SizeClass:
    """The size class of a setting."""
    method = setting.definition
    if setting.is_allocated:
        return SizeClass(group_size=None, bit_budget=setting.bit_budget)
    return SizeClass(
        group_size=None if method.per_row else setting.group_size,
        keep_ratio=setting.keep_ratio if method.keeps_rows else 0.0,
        symmetric=setting.symmetric,
    )
