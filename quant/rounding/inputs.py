"""What is known of the inputs of a matrix that is rounded.

Responsible for the Gram matrix of inputs that arrive divided by a scale. Shape letter: `I` inputs.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from quant.statistics import InputStatistics


@dataclass(frozen=True, kw_only=True)
class ScaledInputs:
    """Holds the statistics of inputs that arrive divided by a scale.

    Attributes:
        statistics: Of the inputs before the division.
        scale: S, float32 `[I]`.
    """

    statistics: InputStatistics
    scale: Tensor

    @cached_property
    def diagonal(self) -> Tensor:
        """The diagonal of `G'`, float32 `[I]`, without the rest of it."""
        return self.statistics.gram.diagonal() / self.scale.square()

    @cached_property
    def gram(self) -> Tensor:
        """`G' = E[x xᵀ] / (S Sᵀ)`, float32 `[I, I]`; symmetric, whatever the last bits of the statistics are."""
        gram = self.statistics.gram / self.scale / self.scale[:, None]
        return torch.triu(gram).add_(torch.triu(gram, 1).T)
