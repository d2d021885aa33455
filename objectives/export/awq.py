"""Write a quantized model in the GEMM version of the format of AutoAWQ: `qweight`, `qzeros`, `scales`.

Responsible for its tensors and its configuration. The format always has zero points; that of codes around zero is the
middle. May assume codes of 4 bits. Shape letters: `O` outputs, `I` inputs, `G` groups.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from objectives.export.formats import Stored
from objectives.export.limits import Limits, modules_in_16_bit, only_scheme
from objectives.export.runtime import RuntimeFormat
from objectives.export.tensors import MIDDLE, half_scales, half_scales_note, write_safetensors
from objectives.trial import Bench
from quant.packing import pack
from quant.plan import Plan
from quant.scheme import IntWeight

# Which output the nibbles of a word hold, from the lowest on: the kernels take them out in pairs, 16 bits apart.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Awq(RuntimeFormat):
    """The AWQ format, whose kernels in vLLM take groups of 32, 64, 128 or rows."""

    limits = Limits(name="awq", groups=(32, 64, 128), always_zero_points=True, multiple=8, splits=True)
    specification = "awq"
    packages = ("transformers", "gptqmodel")

    def write(self, bench: Bench, plan: Plan, codes: Mapping[str, IntWeight], place: Path) -> Stored:
        """Write codes, zero points and scales; see `Format.write`."""
        configuration = {"quantization_config": configuration_of(bench, plan)}
        size = write_safetensors(bench, plan, codes, awq_tensors, configuration, place)
        return Stored(linear_bytes=size, notes=half_scales_note(codes.values()))


def awq_tensors(weight: IntWeight) -> dict[str, Tensor]:
    """Return what is stored of one Linear.

    Returns:
        `qweight` int32 `[I, O / 8]`, `qzeros` int32 `[G, O / 8]`, `scales` float16 `[G, O]`.
    """
    scales = half_scales(weight)
    numbers = weight.codes.to(torch.int32) + (MIDDLE if weight.zero is None else 0)
    zeros = torch.full(scales.shape, MIDDLE) if weight.zero is None else weight.zero
    return {"qweight": pack(_ordered(numbers.T)), "qzeros": pack(_ordered(zeros.T)), "scales": scales.T}


def _ordered(numbers: Tensor) -> Tensor:
    """Put the outputs of every word, which are the columns of `numbers`, into the order of the format."""
    return numbers.reshape(len(numbers), -1, len(ORDER))[:, :, list(ORDER)].flatten(1)


def configuration_of(bench: Bench, plan: Plan) -> dict[str, Any]:
    """Return what `config.json` says of the weights."""
    scheme = only_scheme(plan)
    return {
        "quant_method": "awq",
        "bits": scheme.bits,
        "group_size": scheme.group_size or -1,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": [*modules_in_16_bit(bench.blocks, plan), "lm_head"],
    }
