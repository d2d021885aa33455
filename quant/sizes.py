"""How many bits quantized Linears take, counted from shapes and a setting.

Responsible for the bookkeeping of DESIGN 3 (`bits_per_weight`): codes, 16-bit scales, 4-bit zero points, rows kept in
16 bit, and input scales that do not fold away. May assume nothing is stored that is not listed here; packing tests
count real bytes.
"""

from quant.grid import BITS, SCALE_BITS, Grid
from quant.methods import Setting

KEPT_BITS = 16


def matrix_bits(outputs: int, inputs: int, grid: Grid, kept: int = 0) -> int:
    """Bits of one matrix `[O, I]`: codes, scales and zero points on a grid, but for `kept` rows in 16 bit.

    Where those rows are, at most a bit per row, is not counted.
    """
    groups = (outputs - kept) * grid.groups(inputs)
    codes = BITS * (outputs - kept) * inputs
    return codes + groups * (SCALE_BITS + (0 if grid.symmetric else BITS)) + KEPT_BITS * kept * inputs


def input_scale_bits(inputs: int, setting: Setting) -> int:
    """Bits of the input scale `S` of one Linear: 16 per column where it has to be applied at run time."""
    return SCALE_BITS * inputs if setting.scales_at_run_time else 0
