"""Linears with a common input, as they are handed to be quantized: weights, statistics, and what may be done to them.

Responsible for these as data, and for refusing what is not finite. May assume that the layer roles were discovered
elsewhere. Shape letters: `O` outputs, `I` inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.errors import QuantizationError
from quant.scaling.folding import NormWeight
from quant.scaling.salience import Kind
from quant.statistics import InputStatistics, OutputStatistics


@dataclass(frozen=True, kw_only=True)
class HeadTie:
    """Inputs of an output projection that must share a scale: the query heads of one key/value head.

    The inputs are laid out as `[kv_heads, repeats, head_dim]`; a scale that folds into the value projection is equal
    along `repeats` (docs/methods.md).
    """

    kv_heads: int
    repeats: int
    head_dim: int

    def average(self, per_input: Tensor) -> Tensor:
        """`[I]` replaced by its mean over the tied query heads, `[I]`."""
        heads = per_input.view(self.kv_heads, self.repeats, self.head_dim)
        return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)

    def per_value(self, per_input: Tensor) -> Tensor:
        """`[I]`, equal over the tied query heads, as one number for each output of the value projection."""
        return per_input.view(self.kv_heads, self.repeats, self.head_dim)[:, 0].flatten()


@dataclass(frozen=True, kw_only=True)
class LinearInput:
    """One Linear to quantize.

    Attributes:
        name: What errors call it.
        weight: `[O, I]` in the model's dtype.
        outputs: Statistics of its outputs.
        divisor: The input scale of what reads its outputs, `[O]`, where that folds into its rows; None where none does.
    """

    name: str
    weight: Tensor
    outputs: OutputStatistics
    divisor: Tensor | None = None

    def divided(self) -> Tensor:
        """The weight whose outputs are already divided by the divisor, float32 `[O, I]`."""
        weight = self.weight.float()
        return weight if self.divisor is None else weight / self.divisor[:, None]


@dataclass(frozen=True, kw_only=True)
class LinearSet:
    """Linears with a common input.

    Attributes:
        linears: At least one; all have the same number of inputs.
        kind: Whether they belong to attention or to the MLP.
        inputs: Statistics of the common input, at the tokens that these Linears read.
        folds: Whether an input scale can be folded into what produces the input.
        tie: Which inputs must share a scale for that.
        norm: The norm that an input scale folds into; None where it folds into the rows of another Linear.
        stored: The type the model is stored in; None for the weights' own.
    """

    linears: tuple[LinearInput, ...]
    kind: Kind
    inputs: InputStatistics
    folds: bool = True
    tie: HeadTie | None = None
    norm: NormWeight | None = None
    stored: torch.dtype | None = None


def require_finite(linears: LinearSet) -> None:
    """Refuse Linears that cannot be quantized.

    Raises:
        QuantizationError: If a weight or a statistic is not finite, naming the layer.
    """
    # One transfer for the whole set: a check per tensor would make a GPU wait for each.
    tensors = [(linear.name, linear.weight) for linear in linears.linears]
    inputs = f"the input statistics of {linears.linears[0].name}"
    tensors += [(inputs, tensor) for tensor in (linears.inputs.gram, linears.inputs.magnitude)]
    for linear in linears.linears:
        outputs = linear.outputs
        used = (outputs.mean, outputs.square, outputs.magnitude, outputs.activated, outputs.structural)
        tensors += [(f"the output statistics of {linear.name}", tensor) for tensor in used]
    # NaN spreads to both ends, so they tell of every element without a mask of them all.
    finite = torch.stack([torch.stack(tensor.aminmax()).isfinite().all() for _, tensor in tensors]).tolist()
    broken = dict.fromkeys(name for (name, _), good in zip(tensors, finite, strict=True) if not good)
    if broken:
        raise QuantizationError(f"NaN or Inf in {', '.join(broken)}; check the model's weights and its dtype")
