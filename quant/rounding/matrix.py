"""What a rounding is handed and what it returns.

Responsible for these values alone. Shape letters: `O` outputs, `I` inputs.
"""

from dataclasses import dataclass

from torch import Tensor

from quant.scheme import IntWeight, Ranges


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Holds a matrix that is to be rounded.

    Attributes:
        weight: `W S`, float32 `[O, I]`; must not be written over.
        ranges: What its groups are stored with.
    """

    weight: Tensor
    ranges: Ranges


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """Holds a matrix that was rounded.

    Attributes:
        codes: What it is stored as.
        damping: What was added to the Gram matrix, as a share of its mean diagonal, where that is more than was asked
            for; None elsewhere.
    """

    codes: IntWeight
    damping: float | None = None
