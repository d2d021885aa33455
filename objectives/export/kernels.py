"""What a runtime's kernels make of Linears that stay packed while the model runs.

Responsible for finding out which codes they compute with: kernels have no weights that could be looked at, and round
in their own way, so they are run, and what they put out is held against the format's specification. May assume a
directory that the runtime has loaded. Shape letters: `O` outputs, `I` inputs.
"""

import json
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from objectives.export.reading import stored_linears
from objectives.export.specification import SPECIFICATIONS, read_steps

HALF = torch.finfo(torch.float16)
INPUTS = 1024
"""How many inputs are looked at in one call."""


def packed_weights(module: Any, directory: Path, without: Container[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield name and weight `[O, I]`, float32, of every Linear that has none, one at a time, and its bias.

    The weight is what the specification reads in the files where the kernels compute with the same codes - their values
    are within half a step of it - and else what they compute. So is the bias, which they may hold in float16.

    Args:
        module: The model.
        directory: Its files.
        without: Names of weights that the model has.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("quantization_config") or {}
    specification = SPECIFICATIONS.get(str(config.get("quant_method")))
    if specification is None:
        return
    read, _ = specification
    for name, tensors in stored_linears(directory):
        if f"{name}.weight" in without:
            continue
        weight = read(tensors, config)
        linear = module.get_submodule(name)
        computed = _computed(linear, weight.shape[1], module)
        same = bool(((computed - weight).abs() < read_steps(tensors, weight.shape) / 2).all())
        yield f"{name}.weight", weight if same else computed
        if "bias" in tensors and linear.bias is not None:
            bias, held = tensors["bias"], linear.bias.cpu().to(tensors["bias"].dtype)
            same = torch.allclose(held, bias.half().to(bias.dtype), rtol=HALF.eps, atol=HALF.smallest_normal)
            yield f"{name}.bias", bias if same else held


@torch.inference_mode()
def _computed(linear: Any, inputs: int, module: Any) -> Tensor:
    """Return what a Linear puts out for each of its inputs alone, `[O, I]` float32."""
    with _without_bias(linear):
        columns = [
            linear(
                torch.eye(min(INPUTS, inputs - start), inputs, dtype=module.dtype, device=module.device).roll(start, 1)
            )
            for start in range(0, inputs, INPUTS)
        ]
    return torch.cat([rows.float().cpu() for rows in columns]).T


@contextmanager
def _without_bias(linear: Any) -> Iterator[None]:
    """Take away a bias, which would round what is added to it."""
    bias = getattr(linear, "bias", None)
    if bias is None:
        yield
        return
    linear.bias = None
    try:
        yield
    finally:
        linear.bias = bias
