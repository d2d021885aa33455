"""Let codes move by one step where that brings a block's outputs nearer to full precision's, block by block.

Responsible for learned rounding after whatever rounded before, with scales as they are: the sign descent of SignRound
(Cheng et al. 2024, arXiv 2309.05516), begun at given codes. No block ends farther away than it began, on the text that
is compared. May assume a model that holds these codes; holds one block's offsets, and hidden states of the text twice.
Shape letters: `O` outputs, `I` inputs.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import monotonic

import torch
from torch import Tensor, nn

from objectives.calibration.prefix import QuantizedPrefix
from objectives.errors import InputError
from objectives.model.roles import Block, LinearRole
from objectives.progress import Progress
from objectives.refined import moved, moves_between
from objectives.refinement.options import RefinementOptions
from objectives.text.sequences import Sequences
from objectives.trial import Bench, Quantized
from quant.plan import Plan
from quant.scheme import IntWeight, Scheme, dequantize, loaded
from storage.errors import DamagedEntryError
from storage.results import ResultStore

log = logging.getLogger(__name__)

MOST_SEQUENCES = 128
COMPARED_TOKENS = 16_384
"""Of them, on which it is decided whether a block keeps what it learned: paired, so that few say which is nearer."""
DRIFT = 0.1
"""Of a step: so far does what is rounded move at most, so that no code moves that was not near its boundary."""
EDGE = 0.499
INSTEAD = "--refine-codes 0"


@dataclass(frozen=True, kw_only=True)
class MovedCodes:
    """What became of the codes.

    Attributes:
        codes: By name of the Linear, on the CPU; the model holds them.
        blocks: How many blocks were gone through.
        share: Of the codes that moved.
    """

    codes: Mapping[str, IntWeight]
    blocks: int
    share: float


@dataclass(frozen=True, kw_only=True)
class _Rounded:
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
    def of(cls, linear: LinearRole, weight: IntWeight, scheme: Scheme, exact: Tensor) -> "_Rounded":
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


def move_codes(
    bench: Bench,
    plan: Plan,
    rounded: Quantized,
    text: Sequences,
    options: RefinementOptions,
    store: ResultStore,
    key: str,
    progress: Progress,
) -> MovedCodes:
    """Go through the blocks in order, each behind those whose codes have moved; what was done before is read.

    Args:
        bench: Its model is quantized by `plan`.
        plan: What codes there are.
        rounded: What quantizing gave.
        text: What is read, the first `MOST_SEQUENCES` of it.
        options: How many steps, of how many tokens, and in how much time.
        store: Where it is kept how far this is, as `key`.
        key: There.
        progress: Told how many blocks are done.

    Raises:
        InputError: If the model cannot be run block by block, or the time is less than one block takes.
        StorageError: If the store cannot be written.
    """
    began = monotonic()
    codes, weights = dict(rounded.codes), bench.model.weights
    prefix = QuantizedPrefix(bench.model.module, bench.blocks, text[:MOST_SEQUENCES], options.batch_tokens, INSTEAD)
    finished = _read(store, key)
    done = taken = 0
    for block in bench.blocks:
        linears = [linear for linear in block.linears if linear.name in codes]
        is_finished = all(linear.name in finished for linear in linears)
        layer = bench.model.module.get_submodule(block.name)
        with torch.no_grad(), weights.as_before(block.name, layer, rounded.originals):
            prefix.follow(block)
            exact = {} if is_finished else {linear.name: linear.weight().clone() for linear in linears}
        if is_finished:
            codes |= {linear.name: moved(codes[linear.name], finished[linear.name]) for linear in linears}
        elif options.timeout is not None and taken and _late(began, taken, options.timeout):
            break
        else:
            with weights.at_hand(block.name):
                learned = _learn(prefix, block, linears, exact, rounded, plan, options, bench.model.stored_dtype)
            for name, weight in learned.items():
                finished[name] = moves_between(codes[name], weight)
                codes[name] = weight
            taken += 1
            _require_time(monotonic() - began, taken, options.timeout, len(bench.blocks))
            store.save(key, {"blocks": block.index + 1}, finished)
        with torch.no_grad(), weights.changing(block.name):
            for linear in linears:
                linear.set_weight(loaded(codes[linear.name]).to(linear.parameter.device))
            prefix.advance(block)
        done += 1
        progress("moving codes for the outputs of blocks", done, len(bench.blocks))
    count = sum(moves.numel() for moves in finished.values())
    total = sum(weight.codes.numel() for weight in codes.values())
    return MovedCodes(codes=codes, blocks=done, share=count / max(1, total))


def _learn(
    prefix: QuantizedPrefix,
    block: Block,
    linears: Sequence[LinearRole],
    exact: Mapping[str, Tensor],
    rounded: Quantized,
    plan: Plan,
    options: RefinementOptions,
    stored: torch.dtype,
) -> dict[str, IntWeight]:
    """Return the codes of one block, on the CPU: those that were learned, or those that were there if they are nearer.

    `exact` are its original weights, `[O, I]` by name. The model is left with either.
    """
    compared = math.ceil(COMPARED_TOKENS / options.batch_tokens)
    with torch.no_grad():
        parts = [
            _Rounded.of(
                linear,
                _on(rounded.codes[linear.name], linear.parameter.device),
                plan.setting_for(linear.name).scheme(stored),
                rounded.folded[linear.name].done(exact[linear.name]),
            )
            for linear in linears
        ]
        before = prefix.loss(block, compared)
    generator = torch.Generator().manual_seed(options.seed + block.index)
    order: list[int] = []
    with _differentiated([linear.parameter for linear in linears]) as parameters:
        for step in range(options.code_steps):
            order = order or torch.randperm(prefix.batches, generator=generator).tolist()
            prefix.difference(block, order.pop()).square().mean().backward()  # type: ignore[no-untyped-call]
            # Falls along a line, so that all steps together are the drift.
            rate = 2 * DRIFT * (options.code_steps - step) / (options.code_steps * (options.code_steps + 1))
            with torch.no_grad():
                for part in parts:
                    part.step(rate)
            for parameter in parameters:
                parameter.grad = None
    with torch.no_grad():
        # Also where it is not a number.
        nearer = prefix.loss(block, compared) < before
    return {part.linear.name: (part.now if nearer else part.weight).cpu() for part in parts}


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


def _on(weight: IntWeight, device: torch.device) -> IntWeight:
    zero = None if weight.zero is None else weight.zero.to(device)
    return replace(weight, codes=weight.codes.to(device), scale=weight.scale.to(device), zero=zero)


def _late(began: float, taken: int, timeout: float) -> bool:
    return (monotonic() - began) * (taken + 1) / taken > timeout


def _require_time(elapsed: float, taken: int, timeout: float | None, blocks: int) -> None:
    if taken == 1 and timeout is not None and elapsed > timeout:
        raise InputError(
            f"--refine-timeout {timeout:g} is less than moving the codes of one of {blocks} blocks takes "
            f"({elapsed:.1f} seconds); give more, or leave codes as they are with --refine-codes 0"
        )


def _read(store: ResultStore, key: str) -> dict[str, Tensor]:
    """Return the moves of the Linears that were gone through before; what is damaged is begun anew."""
    if key not in store:
        return {}
    try:
        _, moves = store.load(key)
    except DamagedEntryError as damage:
        log.warning("%s; codes are moved anew", damage)
        return {}
    return dict(moves)
