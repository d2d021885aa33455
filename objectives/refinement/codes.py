"""Let the codes of a model move, block by block, each behind those whose codes have moved.

Responsible for going on where an earlier call was ended, for ending in time, and for less text at once where memory
runs out. May assume a model that holds the codes; holds hidden states of the text twice, beside what one block needs.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import monotonic

import torch
from torch import Tensor

from objectives.calibration.prefix import QuantizedPrefix
from objectives.model.memory import is_out_of_memory, release_cached
from objectives.progress import Progress
from objectives.refined import moved, moves_between, put_codes
from objectives.refinement.block_codes import RoundedModel, learn
from objectives.refinement.moves_entry import MovesEntry
from objectives.refinement.options import TooLittleTimeError
from objectives.text.sequences import Sequences
from objectives.trial import Bench
from quant.scheme import IntWeight

log = logging.getLogger(__name__)

MOST_SEQUENCES = 128
INSTEAD = "--refine-codes 0"
PHASES = 8
"""So often does the progress say anew how much time is left."""


@dataclass(frozen=True, kw_only=True)
class MovedCodes:
    """What became of the codes.

    Attributes:
        codes: By name of the Linear, on the CPU; the model holds them.
        moves: Which of them moved, by name of the Linear, of the blocks that were gone through.
        blocks: How many these are.
        share: Of the codes that moved.
        seconds: From the first block that was not read from the store.
    """

    codes: Mapping[str, IntWeight]
    moves: Mapping[str, Tensor]
    blocks: int
    share: float
    seconds: float


def require_movable(bench: Bench, text: Sequences) -> None:
    """Refuse a model whose codes cannot be moved, before anything is computed; one sequence of the text is read.

    Raises:
        InputError: If the model has experts, or cannot be run block by block.
    """
    QuantizedPrefix(bench.model.module, bench.blocks, text[:1], instead=INSTEAD)


def move_codes(
    rounded: RoundedModel, text: Sequences, before: Mapping[str, Tensor], entry: MovesEntry, progress: Progress
) -> MovedCodes:
    """Go through the blocks in order, each behind those whose codes have moved; what was done before stays.

    Where memory runs out, it goes on with half as many tokens at a time, down to one sequence.

    Args:
        rounded: The model, which holds the codes that moved afterwards.
        text: What is read, the first `MOST_SEQUENCES` of it.
        before: Which codes have moved already, by name of the Linear, of the blocks that were gone through.
        entry: Where the moves are kept.
        progress: Told how many blocks are done.

    Raises:
        InputError: If the model cannot be run block by block.
        TooLittleTimeError: If the time is less than the first block takes, whose moves are kept.
        StorageError: If the store cannot be written.
    """
    text, finished = text[:MOST_SEQUENCES], dict(before)
    while True:
        try:
            return _through_blocks(rounded, text, finished, entry, progress)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or rounded.options.code_batch_tokens < 2 * max(map(len, text.ids)):
                raise
        fewer = rounded.options.code_batch_tokens // 2
        log.warning("memory ran out; moving codes by %d tokens at a time from here on", fewer)
        rounded = replace(rounded, options=replace(rounded.options, code_batch_tokens=fewer))
        release_cached(rounded.bench.model.device)


def _through_blocks(
    rounded: RoundedModel, text: Sequences, finished: dict[str, Tensor], entry: MovesEntry, progress: Progress
) -> MovedCodes:
    """Go through the blocks once; the moves of those that are learned are added to `finished`."""
    bench, options = rounded.bench, rounded.options
    codes, weights, count = dict(rounded.codes), bench.model.weights, len(bench.blocks)
    prefix = QuantizedPrefix(bench.model.module, bench.blocks, text, options.code_batch_tokens, INSTEAD)
    clock = _Clock(options.timeout, count, is_first=not finished)
    done = 0
    for block in bench.blocks:
        linears = [linear for linear in block.linears if linear.name in codes]
        is_finished = all(linear.name in finished for linear in linears)
        if not is_finished and clock.is_late:
            break
        layer = bench.model.module.get_submodule(block.name)
        with torch.no_grad(), weights.as_before(block.name, layer, rounded.result.originals):
            prefix.follow(block)
            exact = {} if is_finished else {linear.name: linear.weight().clone() for linear in linears}
        if is_finished:
            codes |= {linear.name: moved(codes[linear.name], finished[linear.name]) for linear in linears}
        else:
            clock.start()
            with weights.at_hand(block.name):
                learned = learn(rounded, prefix, block, linears, exact)
            for name, weight in learned.items():
                finished[name] = moves_between(codes[name], weight)
                codes[name] = weight
            entry.save(finished)
            clock.count()
        with torch.no_grad(), weights.changing(block.name):
            put_codes(block, codes)
            prefix.advance(block)
        done += 1
        progress(clock.phase(done), done, count)
    moves = sum(places.numel() for places in finished.values())
    total = sum(weight.codes.numel() for weight in codes.values())
    return MovedCodes(codes=codes, moves=finished, blocks=done, share=moves / max(1, total), seconds=clock.seconds)


class _Clock:
    """The time of the blocks that are learned; those that were read from the store take none."""

    def __init__(self, timeout: float | None, blocks: int, is_first: bool) -> None:
        self._timeout, self._blocks, self._is_first = timeout, blocks, is_first
        self._began: float | None = None
        self._taken = 0
        self._phase = ""

    @property
    def seconds(self) -> float:
        """Return the seconds since the first block began."""
        return 0.0 if self._began is None else monotonic() - self._began

    @property
    def is_late(self) -> bool:
        """Whether another block would end after the time that there is; the first never does."""
        return self._timeout is not None and self._taken > 0 and self._until(self._taken + 1) > self._timeout

    def start(self) -> None:
        """Begin a block."""
        self._began = monotonic() if self._began is None else self._began

    def count(self) -> None:
        """End a block.

        Raises:
            TooLittleTimeError: If it is the first of all and took longer than there is time.
        """
        self._taken += 1
        elapsed = self.seconds
        if self._is_first and self._taken == 1 and self._timeout is not None and elapsed > self._timeout:
            raise TooLittleTimeError(
                f"--refine-timeout {self._timeout:g} is less than moving the codes of one of {self._blocks} blocks "
                f"takes ({elapsed:.1f} seconds); give more, or leave codes as they are with {INSTEAD}"
            )

    def phase(self, done: int) -> str:
        """Say what is done and how long it takes, anew after each of `PHASES` parts of the blocks."""
        if not self._phase or done % math.ceil(self._blocks / PHASES) == 0:
            left = self._until(self._blocks - done) / 60 if self._taken else math.nan
            estimate = "" if math.isnan(left) else f"; {left:.0f} min left"
            self._phase = f"moving codes for the outputs of blocks{estimate}"
        return self._phase

    def _until(self, blocks: int) -> float:
        """Return how long so many blocks take at the rate until now."""
        return self.seconds / self._taken * blocks
