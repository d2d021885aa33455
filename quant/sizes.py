"""How many bits quantized Linears take, counted from shapes and a setting.

Responsible for `bits_per_weight` (docs/methods.md): codes, 16-bit scales, zero points, rows kept in 16 bit, and input
scales that do not fold away. May assume nothing is stored that is not listed here; packing tests count real bytes.
"""

import math
from dataclasses import dataclass

from quant.scheme import SCALE_BITS, Scheme
from quant.setting import Setting

KEPT_BITS = 16


@dataclass(frozen=True, kw_only=True)
class MatrixBits:
    """Bits of one matrix.

    Attributes:
        codes: Of its integers.
        scales: Of what the integers need besides: scales and zero points.
        kept: Of the rows that stay in 16 bit.
    """

    codes: int
    scales: int
    kept: int

    @property
    def total(self) -> int:
        """Return the bits of the whole matrix."""
        return self.codes + self.scales + self.kept


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What a model takes when quantized, by what the bytes are spent on.

    Attributes:
        weights: How many weights the matrices of the decoder blocks have.
        codes: Bytes of their integers.
        scales: Bytes of scales, of zero points, and of input scales that do not fold away.
        rest: Bytes of their rows and matrices that are not quantized.
        outside: Bytes of everything else: embeddings, head, norms, biases.
    """

    weights: int
    codes: float
    scales: float
    rest: float
    outside: float

    @property
    def bits_per_weight(self) -> float:
        """Return the bits over the weights of the decoder blocks; NaN where no blocks are known."""
        if not self.weights:
            return math.nan
        return 8 * (self.codes + self.scales + self.rest) / self.weights

    @property
    def model_bytes(self) -> int:
        """Return the bytes of everything, embeddings and head included."""
        return int(self.codes + self.scales + self.rest + self.outside)


def matrix_bits(outputs: int, inputs: int, scheme: Scheme, kept: int = 0) -> MatrixBits:
    """Return the bits of one matrix `[O, I]`: codes, scales and zero points on a scheme, but for `kept` rows in 16 bit.

    Where those rows are, at most a bit per row, is not counted.
    """
    return MatrixBits(
        codes=scheme.code_bits(outputs - kept, inputs),
        scales=scheme.scale_bits(outputs - kept, inputs),
        kept=KEPT_BITS * kept * inputs,
    )


def input_scale_bits(inputs: int, setting: Setting) -> int:
    """Return the bits of the input scale `S` of one Linear: 16 per column where it has to be applied at run time."""
    return SCALE_BITS * inputs if setting.scales_at_run_time else 0
