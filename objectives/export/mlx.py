"""Write a quantized model in the affine format of MLX: `weight`, `scales`, `biases`.

Responsible for its tensors and its configuration: a value is `code * scale + bias`. May assume codes of 4 bits. Shape
letters: `O` outputs, `I` inputs, `G` groups.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from objectives.export.formats import Stored
from objectives.export.limits import Limits, only_scheme
from objectives.export.reading import SPECIFICATION, versions_of
from objectives.export.runtime import RuntimeFormat
from objectives.export.tensors import exact_offsets, numbers, offsets_note, write_safetensors
from objectives.trial import Bench
from quant.packing import pack
from quant.plan import Plan
from quant.scheme import IntWeight, scale_type


class Mlx(RuntimeFormat):
    """The affine format of MLX, which has groups of 32, 64 and 128."""

    limits = Limits(name="mlx", groups=(32, 64, 128), per_row=False, always_zero_points=True, multiple=8)
    specification = "mlx"
    runtime = "mlx-package"
    packages = ("mlx",)
    rounds = "zero points"
    rounding_shows = True

    def write(self, bench: Bench, plan: Plan, codes: Mapping[str, IntWeight], place: Path) -> Stored:
        """Write codes, scales and biases; see `Format.write`."""
        configuration = {"quantization": configuration_of(plan)}
        size = write_safetensors(bench, plan, codes, mlx_tensors, configuration, place)
        return Stored(
            linear_bytes=size, notes=offsets_note(codes.values(), scale_type(bench.model.stored_dtype), "biases")
        )

    def reader(self) -> str:
        """Return what reads the files for the proof: MLX takes codes apart, and transformers computes with the rest."""
        own = super().reader()
        return own if own == SPECIFICATION else f"{own} (unpacks) and {versions_of('transformers')} (computes)"

    def held(self, weight: IntWeight) -> tuple[Tensor, Tensor]:
        """Return scales and biases as the file has them, which the model's type rounds; see `RuntimeFormat.held`."""
        return weight.scale.float(), _biases(weight).float()


def _biases(weight: IntWeight) -> Tensor:
    return exact_offsets(weight).to(weight.scale.dtype)


def mlx_tensors(weight: IntWeight) -> dict[str, Tensor]:
    """Return what is stored of one Linear.

    Returns:
        `weight` uint32 `[O, I / 8]`; `scales` and `biases` `[O, G]` in the type of the scales.
    """
    return {
        "weight": pack(numbers(weight)).view(torch.uint32),
        "scales": weight.scale,
        "biases": _biases(weight),
    }


def configuration_of(plan: Plan) -> dict[str, Any]:
    """Return what `config.json` says of the weights."""
    scheme = only_scheme(plan)
    return {"group_size": scheme.group_size, "bits": scheme.bits, "mode": "affine"}
