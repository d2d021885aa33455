"""Nearest rounding: every weight by itself, whatever its inputs are (docs/methods.md, Q)."""

from typing import Any

from torch import Tensor

from quant.scheme import IntWeight, Scheme, quantize


def nearest(weight: Tensor, scheme: Scheme, inputs: object, setting: Any) -> IntWeight:
    """Round every weight of float32 `[O, I]` to the nearest value of the scheme."""
    return quantize(weight, scheme)
