"""Nearest rounding: every weight by itself, whatever its inputs are (docs/methods.md, Q)."""

from collections.abc import Sequence
from typing import Any

from quant.rounding.matrix import Matrix, Rounded
from quant.scheme import Scheme, quantize


def nearest(matrices: Sequence[Matrix], scheme: Scheme, inputs: object, setting: Any) -> list[Rounded]:
    """Round every weight to the nearest value of the scheme."""
    return [Rounded(codes=quantize(matrix.weight, scheme, matrix.ranges)) for matrix in matrices]
