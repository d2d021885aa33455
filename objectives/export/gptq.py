"""Write a quantized model in the format of AutoGPTQ and GPTQModel: `qweight`, `qzeros`, `scales`, `g_idx`.

Responsible for its tensors and its configuration. Groups have their inputs in the model's order (`desc_act` false).
The first version of the format stores a zero point as the number below it and cannot hold 0, so schemes with zero
points are written in the second. May assume codes of 4 bits. Shape letters: `O` outputs, `I` inputs, `G` groups.
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

ZERO_POINTS = "GPTQModel loads GPTQ with zero points and vLLM does not; for that give --symmetric, or --format awq"


class Gptq(RuntimeFormat):
    """The GPTQ format, whose kernels in vLLM take groups of 32, 64, 128 or rows."""

    limits = Limits(name="gptq", groups=(32, 64, 128), multiple=8, splits=True)
    specification = "gptq"
    packages = ("transformers", "gptqmodel", "optimum")

    def write(self, bench: Bench, plan: Plan, codes: Mapping[str, IntWeight], place: Path) -> Stored:
        """Write codes, zero points and scales; see `Format.write`."""
        configuration = {"quantization_config": configuration_of(bench, plan)}
        size = write_safetensors(bench, plan, codes, gptq_tensors, configuration, place)
        notes = half_scales_note(codes.values())
        if any(weight.zero is not None for weight in codes.values()):
            notes += (ZERO_POINTS,)
        return Stored(linear_bytes=size, notes=notes)


def gptq_tensors(weight: IntWeight) -> dict[str, Tensor]:
    """Return what is stored of one Linear.

    Returns:
        `qweight` int32 `[I / 8, O]`, `qzeros` int32 `[G, O / 8]`, `scales` float16 `[G, O]`, `g_idx` int32 `[I]`.
    """
    scales = half_scales(weight)
    symmetric = weight.zero is None
    numbers = weight.codes.to(torch.int32) + (MIDDLE if symmetric else 0)
    # The first version is what everything reads, and what symmetric kernels are chosen by.
    zeros = torch.full(scales.shape, MIDDLE - 1) if weight.zero is None else weight.zero
    groups = torch.arange(numbers.shape[1], dtype=torch.int32) // weight.group_size
    return {
        "qweight": pack(numbers).T,
        "qzeros": pack(zeros.T),
        "scales": scales.T,
        "g_idx": groups,
    }


def configuration_of(bench: Bench, plan: Plan) -> dict[str, Any]:
    """Return what `config.json` says of the weights."""
    scheme = only_scheme(plan)
    kept: dict[str, Any] = {f"-:{name}": {} for name in modules_in_16_bit(bench.blocks, plan)}
    return {
        "quant_method": "gptq",
        "bits": scheme.bits,
        "group_size": scheme.group_size or -1,
        "sym": scheme.symmetric,
        "desc_act": False,
        "lm_head": False,
        "checkpoint_format": "gptq" if scheme.symmetric else "gptq_v2",
        **({"dynamic": kept} if kept else {}),
    }
