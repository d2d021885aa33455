"""Fold input scales into what produces the inputs, in a model in memory.

Responsible for the weights of norms and of what else reads them, and for the biases of norms and Linears, as they will
be stored; the rows of a Linear take the scale when it is quantized (`quant.linears.LinearInput.divisor`). May assume a
site that folds and a scale that respects its tie. Shape letters: `O` outputs, `I` inputs.
"""

from typing import cast

import torch
from torch import Tensor, nn

from objectives.model.roles import Block, InputSite, NormRole
from quant.scaling.folding import NormWeight


def norm_weight(site: InputSite, stored: torch.dtype) -> NormWeight | None:
    """Return the weight of the norm before a site, in the type it is stored in; None where none takes its scale."""
    norm = site.producer
    if not isinstance(norm, NormRole):
        return None
    return _stored_weight(norm, stored)


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
    if producer.bias is not None:
        rows = slice(None) if producer.rows is None else producer.rows
        _divide(producer.bias, rows, divisor, stored)
    return {producer.name: divisor}


def changed_modules(block: Block) -> list[nn.Module]:
    """Return every module of a block that quantizing or folding may change, each once."""
    return list(dict.fromkeys(module for site in block.sites for module in changed_by(site)))


def changed_by(site: InputSite) -> list[nn.Module]:
    """Return the modules that quantizing the Linears of a site or folding the scale of its input may change."""
    modules = [linear.module for linear in site.linears]
    if isinstance(site.producer, NormRole):
        return [*modules, site.producer.module, *site.producer.readers]
    return modules if site.producer is None else [*modules, site.producer.module]


def _stored_weight(norm: NormRole, stored: torch.dtype) -> NormWeight:
    readers = (cast(Tensor, reader.weight).to(stored) for reader in norm.readers)
    return NormWeight(weight=cast(Tensor, norm.module.weight).to(stored), offset=norm.offset, readers=tuple(readers))


def _fold_into_norm(norm: NormRole, scale: Tensor, stored: torch.dtype) -> None:
    weight, bias = cast(Tensor, norm.module.weight), getattr(norm.module, "bias", None)
    weight.copy_(_stored_weight(norm, stored).divided(scale))
    if bias is not None:
        _divide(bias, slice(None), scale, stored)
    for reader in norm.readers:
        cast(Tensor, reader.weight).mul_(scale)


def _divide(bias: Tensor, rows: slice | Tensor, divisor: Tensor, stored: torch.dtype) -> None:
    bias[rows] = (bias[rows].float() / divisor).to(stored).to(bias.dtype)
