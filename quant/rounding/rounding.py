"""The protocol of a rounding, and the table of those that a setting can name.

Responsible for what a rounding is handed and what it returns. Adding one is a module beside `nearest` and its line in
`ROUNDINGS`. May assume finite float32 weights. Shape letters: `O` outputs, `I` inputs.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from quant.rounding.gptq import gptq
from quant.rounding.inputs import ScaledInputs
from quant.rounding.matrix import Matrix, Rounded
from quant.rounding.nearest import nearest
from quant.scheme import Scheme


class Rounding(Protocol):
    """Chooses the codes of matrices."""

    def __call__(self, matrices: Sequence[Matrix], scheme: Scheme, inputs: ScaledInputs, setting: Any) -> list[Rounded]:
        """Round matrices that are multiplied with the same inputs; their rows must not influence each other.

        Args:
            matrices: At least one.
            scheme: What their values can be.
            inputs: Statistics of what they are multiplied with.
            setting: The `Setting` that asked for it, for parameters of its own.
        """
        ...


ROUNDINGS: dict[str, Rounding] = {"nearest": nearest, "gptq": gptq}
"""The roundings by name."""
PROXY = "nearest"
"""The one that the search for input scales stands in for all others with."""
