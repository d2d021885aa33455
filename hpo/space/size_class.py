"""What may be compared with what: settings whose quantized weights take equally many bits.

Responsible for the size class of a setting, by which trials are pruned, ranked and shown. Knows settings alone: of one
model under one kind of grid and scale sharing, equal size classes are equal bits per weight.
"""

from dataclasses import dataclass

from quant.setting import Setting

# The fields of a setting that decide it.
SIZE_CLASS_FIELDS = ("group_size", "keep_ratio")


@dataclass(frozen=True, kw_only=True)
class SizeClass:
    """What a setting's bits depend on.

    Attributes:
        group_size: Inputs that share a scale; None is one scale per output row.
        keep_ratio: Share of the rows in 16 bit; 0 where the method keeps none.
    """

    group_size: int | None
    keep_ratio: float = 0.0

    @property
    def order(self) -> tuple[int, float]:
        """For sorting: smaller groups first, then rows with one scale, fewer kept ones first."""
        return self.group_size or 2**31, self.keep_ratio

    @property
    def short(self) -> str:
        """What it is called where there is little room: `g64`, `per row`, `keep 0.2`."""
        if self.group_size is not None:
            return f"g{self.group_size}"
        return f"keep {self.keep_ratio:g}" if self.keep_ratio else "per row"

    def __str__(self) -> str:
        if self.group_size is not None:
            return f"group size {self.group_size}"
        return "one scale per row" + (f", {100 * self.keep_ratio:g} % of rows in 16 bit" if self.keep_ratio else "")


def size_class_of(setting: Setting) -> SizeClass:
    """The size class of a setting."""
    method = setting.definition
    return SizeClass(
        group_size=None if method.per_row else setting.group_size,
        keep_ratio=setting.keep_ratio if method.keeps_rows else 0.0,
    )
