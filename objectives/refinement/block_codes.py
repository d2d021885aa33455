"""Let the codes of one block move by one step where that brings its outputs nearer to full precision's.

Responsible for learned rounding after whatever rounded before, with scales as they are: the sign descent of SignRound
(Cheng et al. 2024, arXiv 2309.05516), begun at given codes. No block ends farther away than it began, on the text that
is compared. May assume a block that was followed; holds its offsets. Shape letters: `O` outputs, `I` inputs.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from objectives.calibration.prefix import QuantizedPrefix
from objectives.model.roles import Block, LinearRole
from objectives.refined import put_codes
from objectives.refinement.options import RefinementOptions
from objectives.trial import Bench, Quantized
from quant.plan import Plan
from quant.scheme import IntWeight, Scheme, dequantize, loaded

COMPARED_TOKENS = 16_384
"""Of the text: on these it is decided whether a block keeps what it learned; paired, so that few are enough."""
EDGE = 0.499


@dataclass(frozen=True, kw_only=True)
class RoundedModel:
    """A model whose codes may move.

    Attributes:
        bench: Its model is quantized by the plan.
        plan: What codes there are.
        result: What quantizing gave.
        options: How many steps, of how many tokens, and in how much time.
    """

    bench: Bench
    plan: Plan
    result: Quantized
    options: RefinementOptions

    @property
    def codes(self) -> Mapping[str, IntWeight]:
        """Return the codes as they were rounded, by name of the Linear, on the CPU."""
        return self.result.codes

    def scheme(self, linear: LinearRole) -> Scheme:
        """Return what codes a Linear can have."""
        return self.plan.setting_for(linear.name).scheme(self.bench.model.stored_dtype)


@dataclass(frozen=True, kw_only=True)
class _Offsets:
    """One Linear whose codes may move: `codes + round(offset)`.

    Attributes:
        linear: Whose weight it is.
        weight: Its codes as they were, on its device.
        scheme: What codes there are.
        offset: Where in the step around its code a weight is, float32 `[O, I]`; changed in place.
        sign: Of the scale of each weight, `[O, I]`.
    """

    linear: LinearRole
    weight: IntWeight
    scheme: Scheme
    offset: Tensor
    sign: Tensor

    @classmethod
    def of(cls, linear: LinearRole, weight: IntWeight, scheme: Scheme, exact: Tensor) -> "_Offsets":
        """Begin where the exact weight `[O, I]` is; one whose code is not the nearest is as far within its border."""
        scale = dequantize(replace(weight, codes=torch.ones_like(weight.codes), zero=None))
        offset = (exact - dequantize(weight)) / scale
        beyond = offset.abs() > 0.5
        within = offset.sign() * (1 - offset.abs()).clamp(min=0)
        offset = torch.where(beyond, within, offset).clamp(-EDGE, EDGE)
        return cls(linear=linear, weight=weight, scheme=scheme, offset=offset, sign=scale.sign())

    @property
    def now(self) -> IntWeight:
        """Return the codes that the offsets say."""
        codes = (self.weight.codes.float() + self.offset.round()).clamp_(self.scheme.lowest, self.scheme.highest)
        return replace(self.weight, codes=codes.to(self.weight.codes.dtype))

    def step(self, rate: float) -> None:
        """Move every offset against its gradient by as much, and put what is then rounded into the model."""
        gradient = self.linear.parameter.grad
        assert gradient is not None
        direction = self.linear.part_of(gradient).float().mul_(self.sign).sign_()
        self.offset.sub_(direction, alpha=rate).clamp_(-1, 1)
        self.linear.set_weight(loaded(self.now))


def learn(
    rounded: RoundedModel,
    prefix: QuantizedPrefix,
    block: Block,
    linears: Sequence[LinearRole],
    exact: Mapping[str, Tensor],
) -> dict[str, IntWeight]:
    """Return the codes of one block, on the CPU: those that were learned, or those that were there if they are nearer.

    Args:
        rounded: The model, which is left with what was learned.
        prefix: Text before the block.
        block: The block.
        linears: Those of its Linears that have codes.
        exact: Their original weights, `[O, I]` by name.
    """
    options = rounded.options
    compared = math.ceil(COMPARED_TOKENS / options.code_batch_tokens)
    with torch.no_grad():
        # A block that ran out of memory was left on the way.
        put_codes(block, rounded.codes)
        parts = [
            _Offsets.of(
                linear,
                rounded.codes[linear.name].to(linear.parameter.device),
                rounded.scheme(linear),
                rounded.result.folded[linear.name].done(exact[linear.name]),
            )
            for linear in linears
        ]
        before = prefix.loss(block, compared)
    generator = torch.Generator().manual_seed(options.seed + block.index)
    order: list[int] = []
    with _differentiated([linear.parameter for linear in linears]) as parameters:
        for step in range(options.code_steps):
            order = order or torch.randperm(prefix.batches, generator=generator).tolist()
            _signed_loss(prefix.difference(block, order.pop())).backward()  # type: ignore[no-untyped-call]
            # Falls along a line, so that all steps together are the drift.
            left = (options.code_steps - step) / (options.code_steps * (options.code_steps + 1))
            with torch.no_grad():
                for part in parts:
                    part.step(2 * options.code_drift * left)
            for parameter in parameters:
                parameter.grad = None
    with torch.no_grad():
        # Also where it is not a number.
        nearer = prefix.loss(block, compared) < before
    return {part.linear.name: (part.now if nearer else part.weight).cpu() for part in parts}


def _signed_loss(difference: Tensor) -> Tensor:
    """Return the mean square of a difference `[N, O]` times a power of two: only signs of its gradient are used.

    That gradient is then about `difference / 64`, where a mean's would be below what float16 can hold.
    """
    return difference.square().mean() * 2.0 ** (round(math.log2(difference.numel())) - 7)


@contextmanager
def _differentiated(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Collect the gradients of these parameters inside the block; one that is named twice is one."""
    distinct = list(dict.fromkeys(parameters))
    for parameter in distinct:
        parameter.requires_grad_(True)
    try:
        yield distinct
    finally:
        for parameter in distinct:
            parameter.requires_grad_(False)
            parameter.grad = None
