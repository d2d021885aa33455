"""The protocol of a rounding, and the table of those that a setting can name.

Responsible for what a rounding is handed and what it returns. Adding one is a module beside `nearest` and its line in
`ROUNDINGS`. May assume finite float32 weights. Shape letters: `O` outputs, `I` inputs.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from quant.rounding.nearest import nearest
from quant.scheme import IntWeight, Scheme
from quant.statistics import InputStatistics


@dataclass(frozen=True, kw_only=True)
class ScaledInputs:
    """Holds the statistics of inputs that arrive divided by a scale.

    Attributes:
        statistics: Of the inputs before the division.
        scale: S, float32 `[I]`.
    """

    statistics: InputStatistics
    scale: Tensor

    def gram(self) -> Tensor:
        """Compute `E[x xᵀ] / (S Sᵀ)`, float32 `[I, I]`; a new tensor at every call."""
        return self.statistics.gram / self.scale / self.scale[:, None]


class Rounding(Protocol):
    """Chooses the codes of a matrix."""

    def __call__(self, weight: Tensor, scheme: Scheme, inputs: ScaledInputs, setting: Any) -> IntWeight:
        """Round a matrix.

        Args:
            weight: `W S`, float32 `[O, I]`; not written over.
            scheme: What its values can be.
            inputs: Statistics of what it is multiplied with.
            setting: The `Setting` that asked for it, for parameters of its own.
        """
        ...


ROUNDINGS: dict[str, Rounding] = {"nearest": nearest}
"""The roundings by name."""
PROXY = "nearest"
"""The one that the search for input scales stands in for all others with."""
