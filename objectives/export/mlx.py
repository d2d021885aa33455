"""Write a quantized model in the affine format of MLX: `weight`, `scales`, `biases`.

Responsible for its tensors and its configuration: a value is `code * scale + bias`. May assume codes of 4 bits. Shape
letters: `O` outputs, `I` inputs, `G` groups.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from objectives.export.formats import RoundedParts, Stored
from objectives.export.limits import Limits, only_scheme, quantized_linears
from objectives.export.reading import SPECIFICATION, versions_of
from objectives.export.runtime import RuntimeFormat
from objectives.export.tensors import MIDDLE, exact_offsets, offsets_note, write_safetensors
from objectives.trial import Bench
from quant.packing import pack
from quant.plan import Plan
from quant.scheme import IntWeight, scale_type


class Mlx(RuntimeFormat):
    """The affine format of MLX, which has groups of 32, 64 and 128."""

    limits = Limits(name="mlx", groups=(32, 64, 128), per_row=False, multiple=8)
    specification = "mlx"
    runtime = "mlx-package"
    packages = ("mlx",)

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

    def rounded(self, bench: Bench, plan: Plan, codes: Mapping[str, IntWeight]) -> RoundedParts | None:
        """Return what puts zero points into the Linears as biases of the model's type hold them; None without any."""
        if all(torch.equal(_biases(weight).float(), exact_offsets(weight)) for weight in codes.values()):
            return None
        return RoundedParts(parts="zero points", in_place=_with_stored_biases(bench, plan, codes))


@contextmanager
@torch.inference_mode()
def _with_stored_biases(bench: Bench, plan: Plan, codes: Mapping[str, IntWeight]) -> Iterator[None]:
    weights, linears = bench.model.weights, quantized_linears(bench.blocks, plan)
    with weights.restored([linear.module for linear in linears]):
        for block in bench.blocks:
            with weights.changing(block.name):
                for linear in quantized_linears([block], plan):
                    linear.set_weight(_stored_values(codes[linear.name]).to(linear.parameter))
        yield


def _stored_values(weight: IntWeight) -> Tensor:
    """Return what MLX makes of a Linear, `[O, I]` float32."""
    scales, biases = (part.float().repeat_interleave(weight.group_size, 1) for part in (weight.scale, _biases(weight)))
    return _numbers(weight).float() * scales + biases


def _numbers(weight: IntWeight) -> Tensor:
    """Return the codes from zero on, int32 `[O, I]`."""
    return weight.codes.to(torch.int32) + (MIDDLE if weight.zero is None else 0)


def _biases(weight: IntWeight) -> Tensor:
    return exact_offsets(weight).to(weight.scale.dtype)


def mlx_tensors(weight: IntWeight) -> dict[str, Tensor]:
    """Return what is stored of one Linear.

    Returns:
        `weight` uint32 `[O, I / 8]`; `scales` and `biases` `[O, G]` in the type of the scales.
    """
    return {
        "weight": pack(_numbers(weight)).view(torch.uint32),
        "scales": weight.scale,
        "biases": _biases(weight),
    }


def configuration_of(plan: Plan) -> dict[str, Any]:
    """Return what `config.json` says of the weights."""
    scheme = only_scheme(plan)
    return {"group_size": scheme.group_size, "bits": scheme.bits, "mode": "affine"}
