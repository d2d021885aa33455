"""Have the values of Linears in the model that a file holds, where it rounds scales or offsets of what was measured.

Responsible for these values alone. May assume a model whose weights are quantized at the moment. Shape letters: `O`
outputs, `I` inputs, `G` groups.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from objectives.export.limits import quantized_linears
from objectives.export.tensors import exact_offsets, numbers
from objectives.trial import Bench
from quant.plan import Plan
from quant.scheme import IntWeight

Held = Callable[[IntWeight], tuple[Tensor, Tensor]]
"""Scales and offsets `[O, G]`, float32, that a file has of a Linear."""


def held_exactly(weight: IntWeight, scale: Tensor, offset: Tensor) -> bool:
    """Return whether a file that has these scales and offsets `[O, G]` holds a Linear exactly."""
    return torch.equal(scale, weight.scale.float()) and torch.equal(offset, exact_offsets(weight))


@contextmanager
@torch.inference_mode()
def with_held_values(bench: Bench, plan: Plan, codes: Mapping[str, IntWeight], held: Held) -> Iterator[None]:
    """Put what a reader makes of codes, scales and offsets into the quantized Linears, and then back what was there."""
    weights, linears = bench.model.weights, quantized_linears(bench.blocks, plan)
    with weights.restored([linear.module for linear in linears]):
        for block in bench.blocks:
            with weights.changing(block.name):
                for linear in quantized_linears([block], plan):
                    weight = codes[linear.name]
                    linear.set_weight(_values(weight, *held(weight)).to(linear.parameter))
        yield


def _values(weight: IntWeight, scale: Tensor, offset: Tensor) -> Tensor:
    """Return `[O, I]` float32: codes from zero on, times their scale, plus their offset."""
    scales, offsets = (part.repeat_interleave(weight.group_size, 1) for part in (scale, offset))
    return numbers(weight).float() * scales + offsets
