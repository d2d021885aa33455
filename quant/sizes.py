"""How many bits quantized Linears take, counted from shapes and a setting.

Responsible for the bookkeeping of DESIGN 3 (`bits_per_weight`): codes, 16-bit scales, 4-bit zero points, and input
scales that do not fold away. May assume nothing is stored that is not listed here; packing tests count real bytes.
"""

from quant.grid import BITS, SCALE_BITS, Grid
from quant.methods import Setting


def matrix_bits(outputs: int, inputs: int, grid: Grid) -> int:
    """Bits of one matrix `[O, I]` on a grid: codes, scales and zero points."""
    groups = outputs * grid.groups(inputs)
    return BITS * outputs * inputs + groups * (SCALE_BITS + (0 if grid.symmetric else BITS))


def input_scale_bits(inputs: int, setting: Setting) -> int:
    """Bits of the input scale `S` of one Linear: 16 per column where it has to be applied at run time."""
    kept = setting.scales == "linear" and setting.definition.salience is not None
    return SCALE_BITS * inputs if kept else 0
