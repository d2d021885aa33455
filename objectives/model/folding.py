"""Fold input scales into what produces the inputs, in a model in memory.

Responsible for the weights of norms and for the biases of norms and Linears, as they will be stored; the rows of a
Linear take the scale when it is quantized (`quant.layers.LinearInput.divisor`). May assume a site that folds and a
scale that respects its tie. Shape letters: `O` outputs, `I` inputs.
"""

import torch
from torch import Tensor, nn

from objectives.model.roles import Block, InputSite, NormRole
from quant.scaling.folding import NormWeight


def norm_weight(site: InputSite, stored: torch.dtype) -> NormWeight | None:
    """Return the weight of the norm before a site, in the type it is stored in; None where none takes its scale."""
    norm = site.producer
    if not isinstance(norm, NormRole):
        return None
    weight: Tensor = norm.module.weight  # type: ignore[assignment]
    return NormWeight(weight=weight.to(stored), offset=norm.offset)


def fold(site: InputSite, scale: Tensor, stored: torch.dtype) -> dict[str, Tensor]:
    """Make what feeds a site output `1/S` of what it did, but for the weight of a Linear.

    Args:
        site: Whose inputs are divided.
        scale: S, `[I]`.
        stored: The type the model is stored in: nothing is left in the model that it could not hold.

    Returns:
        What the rows of that Linear have to be divided by, `[O]`, by its name; nothing for a norm.
    """
    producer = site.producer
    if isinstance(producer, NormRole):
        _fold_into_norm(producer, scale, stored)
        return {}
    assert producer is not None
    divisor = scale if site.tie is None else site.tie.per_value(scale)
    if producer.module.bias is not None:
        rows = slice(None) if producer.rows is None else producer.rows
        _divide(producer.module.bias, rows, divisor, stored)
    return {producer.name: divisor}


def changed_modules(block: Block) -> list[nn.Module]:
    """Return every module of a block that quantizing or folding may change."""
    producers = [site.producer.module for site in block.sites if site.producer is not None]
    return [*(linear.module for linear in block.linears), *producers]


def _fold_into_norm(norm: NormRole, scale: Tensor, stored: torch.dtype) -> None:
    weight, bias = norm.module.weight, getattr(norm.module, "bias", None)
    weight.copy_(NormWeight(weight=weight.to(stored), offset=norm.offset).divided(scale))  # type: ignore[operator,arg-type]
    if bias is not None:
        _divide(bias, slice(None), scale, stored)


def _divide(bias: Tensor, rows: slice | Tensor, divisor: Tensor, stored: torch.dtype) -> None:
    bias[rows] = (bias[rows].float() / divisor).to(stored).to(bias.dtype)
