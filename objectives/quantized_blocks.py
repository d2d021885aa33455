"""What quantizing the blocks of a model gives beside the weights that are then in it.

Responsible for these as values: what was chosen for each Linear, its codes, and what was folded into it. Shape letters:
`O` outputs, `I` inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from objectives.model.layouts import Role
from quant.scheme import IntWeight


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """What was chosen for one Linear, and what it costs.

    Attributes:
        name: The Linear's.
        depth: Index of its block.
        role: What the block uses it for.
        alpha: The chosen exponent.
        nearest_loss: Loss of nearest rounding.
        loss: Loss of the search's choice, rounded to nearest.
        final_loss: Loss of the codes.
        fell_back: Whether nearest rounding was kept because what was asked for would have lost more.
        damping: What GPTQ had to add to the Gram matrix, as a share of its mean diagonal, where that is more than was
            asked for.
        tokens: How many the router sent its expert in calibration; None for Linears that read them all.
        own_share: What those count for beside what all experts read, 1 where every expert read all tokens; None for
            Linears of no expert.
    """

    name: str
    depth: int
    role: Role
    alpha: float
    nearest_loss: float
    loss: float
    final_loss: float
    fell_back: bool = False
    damping: float | None = None
    tokens: int | None = None
    own_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class FoldedScales:
    """What was folded into the weight of a Linear: it stores `Q(W S / d)` of the original `W` `[O, I]`.

    Attributes:
        inputs: S, `[I]`; None where its inputs are not scaled.
        outputs: d, `[O]`, the scale of what reads its outputs; None where that folds into nothing of it.
    """

    inputs: Tensor | None
    outputs: Tensor | None

    def done(self, weight: Tensor) -> Tensor:
        """Return what is rounded of the original weight `[O, I]`, float32 `[O, I]`."""
        scaled = weight.float() if self.inputs is None else weight.float() * self.inputs
        return scaled if self.outputs is None else scaled / self.outputs[:, None]

    def undone(self, stored: Tensor) -> Tensor:
        """Return the weight that does without the scales what `stored` `[O, I]` does with them, float32 `[O, I]`."""
        weight = stored.float()
        weight = weight if self.inputs is None else weight / self.inputs
        return weight if self.outputs is None else weight * self.outputs[:, None]


@dataclass(frozen=True, kw_only=True)
class QuantizedBlocks:
    """What quantizing the blocks of a model gave, beside the weights that are now in it.

    Attributes:
        layers: One result per Linear, in the model's order.
        codes: What the weights are stored as, on the CPU, by the name of the Linear; only those that were asked for.
        folded: What was folded into those of which there are codes.
    """

    layers: tuple[LayerResult, ...] = ()
    codes: Mapping[str, IntWeight] = field(default_factory=dict)
    folded: Mapping[str, FoldedScales] = field(default_factory=dict)
