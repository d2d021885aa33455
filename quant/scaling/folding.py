"""Input scales that fold into a norm: what the norm's weight becomes, and which scales it can take exactly.

A norm that outputs `(offset + weight) n` and is to output `1/S` of that needs the weight `(offset + weight) / S -
offset`, which is stored in as few bits as before. So that the model that is stored is the one that was searched, the
scale is taken from the stored weight, not the other way round. May assume finite weights. Shape letter: `I` inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NormWeight:
    """The weight of a norm.

    Attributes:
        weight: `[I]`, in the type it is stored in.
        offset: What is added to it where it is applied: 1 in Gemma's norms, 0 elsewhere.
        readers: Weights `[..., I]` that stay in 16 bit and read what the norm puts out, in the type they are stored in:
            they are multiplied with the scale.
    """

    weight: Tensor
    offset: float = 0.0
    readers: tuple[Tensor, ...] = ()

    def divided(self, scale: Tensor) -> Tensor:
        """Return the weight with which the norm outputs `1/S` of what it did, in the stored type, `[I]`.

        Where rounding leaves nothing of an output, or no number at all, its weight is left as it is.

        Args:
            scale: S, float32 `[I]`, positive.
        """
        rounded = (self._gain(self.weight) / scale - self.offset).to(self.weight.dtype)
        gain = self._gain(rounded)
        usable = gain.isfinite() & (gain * self._gain(self.weight) > 0) & (scale != 1)
        return torch.where(usable, rounded, self.weight)

    def representable(self, scale: Tensor) -> Tensor:
        """The scale near `scale` whose inverse the stored weight holds exactly, float32 `[I]`; 1 where it holds none.

        With readers it is a power of two, which a product with their weights takes exactly, too: the choice of experts,
        which is one of near ties now and then, is then what it was.

        Args:
            scale: S, float32 `[I]`, positive.
        """
        wanted = scale.log2().round().exp2() if self.readers else scale
        divided = self._gain(self.divided(wanted))
        exact = torch.where(divided == 0, 1.0, self._gain(self.weight) / divided)
        for reader in self.readers:
            undone = (reader.float() * exact).to(reader.dtype).float() / exact
            held = (undone == reader.float()).flatten(0, -2).all(0)
            exact = torch.where(held, exact, 1.0)
        return exact

    def _gain(self, weight: Tensor) -> Tensor:
        return self.offset + weight.float()
