"""Calibration through the cache: statistics of any calibration size, computed once for all processes and studies.

Responsible for the statistics of the first 16, 32, ... samples, each computed from those before it and the samples that
it adds. An entry is known by the model and the very tokens it was computed from, so nothing else - no trial parameter,
no name, no other size - can make it wrong; a later study that wants more samples only adds to what is there, and a
trial reads one entry whatever its size. May assume a model with its original weights.
"""

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, prod

import torch
import xxhash

from objectives.calibration.carrying import CarriedStates, can_begin_at, first_missing, has_states
from objectives.calibration.entries import flattened, merged, part_name, restored, stored_size, with_packed_grams
from objectives.calibration.prefix import QuantizedPrefix
from objectives.calibration.recording import BlockStatistics, record, statistics_bytes, tokens_at_a_time
from objectives.calibration.shrinking import of_all_tokens, shrunk_block
from objectives.errors import InputError, RunError
from objectives.model.loading import Model
from objectives.model.memory import available_bytes
from objectives.model.roles import Block
from objectives.progress import Progress
from objectives.text.sequences import Sequences
from quant.statistics import unpack_symmetric
from storage.cache import TensorCache
from storage.entry_files import EntryWriter
from storage.errors import DamagedEntryError, LeaseLostError

log = logging.getLogger(__name__)

FORMAT, FIRST_SIZE = 4, 16
PASS_WORK, DEVICE_PASS_WORK = 5e11, 5e14
"""Multiplications of one pass, on the CPU and elsewhere: seconds to a minute, which is what a kill costs."""


@dataclass(frozen=True, kw_only=True)
class FirstSamples:
    """The first `size` sequences of the calibration text.

    Attributes:
        size: How many they are.
        added: How many of them the step before it lacks.
        key: Of their statistics in the cache.
    """

    size: int
    added: int
    key: str


def sizes_to(size: int) -> list[int]:
    """Return the sizes on the way to the first `size` samples: 16, 32, ..., so that others share them, and `size`."""
    sizes = []
    smaller = FIRST_SIZE
    while smaller < size:
        sizes.append(smaller)
        smaller *= 2
    return [*sizes, size]


class Calibration:
    """Statistics of one model on one calibration text, at any size up to all of it.

    Reading needs no forward pass once its entry is in the cache. Any number of processes may do this at the same time;
    each missing entry is computed by one of them.
    """

    def __init__(
        self,
        model: Model,
        blocks: Sequence[Block],
        sequences: Sequences,
        cache: TensorCache,
        max_memory: int | None = None,
        route_all: bool = False,
    ) -> None:
        """Prepare; nothing is computed yet.

        Args:
            model: The full-precision model.
            blocks: Its decoder blocks.
            sequences: All the calibration text, in its fixed order.
            cache: Where statistics are kept.
            max_memory: Bytes that sums may take on the device; blocks are recorded in several passes beyond it.
            route_all: Whether statistics of experts are of all tokens, and not of those that their router sends them.
        """
        self._model = model
        self._blocks = blocks
        self._sequences = sequences
        self._cache = cache
        self._max_memory = max_memory
        self._route_all = route_all

    @property
    def text(self) -> Sequences:
        """Return all the calibration text, in its fixed order."""
        return self._sequences

    @property
    def cache(self) -> TensorCache:
        """Return where statistics are kept."""
        return self._cache

    @property
    def route_all(self) -> bool:
        """Return whether statistics of experts are of all tokens."""
        return self._route_all

    def first(self, size: int) -> FirstSamples:
        """Return the first `size` samples.

        Raises:
            InputError: If there are not so many samples.
        """
        return self.steps_to(size)[-1]

    def steps_to(self, size: int) -> list[FirstSamples]:
        """Return the steps to the first `size` samples, the last of which are these.

        Raises:
            InputError: If there are not so many samples.
        """
        if not 1 <= size <= len(self._sequences):
            raise InputError(
                f"n_calib {size} is outside the 1..{len(self._sequences)} samples of {self._sequences.source}"
            )
        sizes = sizes_to(size)
        return [FirstSamples(size=end, added=end - start, key=self._key(end)) for start, end in pairwise([0, *sizes])]

    def ensure(self, sizes: Iterable[int], progress: Progress) -> int:
        """Make sure that the statistics of every size are in the cache; returns how many samples had to be read.

        Raises:
            InputError: If a size exceeds the text.
            RunError: If a block's sums alone exceed the memory.
            StorageError: If the cache cannot be written, or has no room.
            DamagedEntryError: If an entry is damaged once more after it was computed again.
        """
        ways = [self.steps_to(size) for size in sorted(sizes)]
        computed = 0
        messages: set[str] = set()
        repaired: set[str] = set()

        def waiting(text: str) -> None:
            if text not in messages:
                log.warning("%s", text)
            messages.add(text)
            progress("calibrating in another process", 0, 1)

        while self._missing(ways):
            # One process at a time computes for a model; one that lost its lease waits for its successor.
            with suppress(LeaseLostError), self._cache.lease(self._model.fingerprint, waiting):
                for before, step in self._missing(ways):
                    try:
                        self._compute(before, step, progress)
                    except DamagedEntryError as damage:
                        self.discard_once(damage, repaired)
                        break
                    computed += step.added
        return computed

    def read(self, block: Block, size: int) -> BlockStatistics:
        """Return a block's statistics of the first `size` samples, on its device; those of experts are shrunk.

        With `route_all` they are as they were recorded; `tokens` is then how many the router sends, too.

        Raises:
            DamagedEntryError: If an entry is damaged; `discard_once` it and `ensure` again.
        """
        packed = restored(self._cache.read(self.first(size).key, part_name(block)), block, self._model.device)
        settled = of_all_tokens(block, packed) if self._route_all else shrunk_block(block, packed)
        inputs = {name: replace(means, gram=unpack_symmetric(means.gram)) for name, means in settled.inputs.items()}
        return replace(settled, inputs=inputs)

    def followed(self, size: int) -> QuantizedPrefix:
        """Return the first `size` samples on their way through the model; InputError where blocks are no chain."""
        return QuantizedPrefix(self._model.module, self._blocks, self._sequences[:size])

    def discard_once(self, damage: DamagedEntryError, repaired: set[str]) -> None:
        """Remove a damaged entry, to be computed again; raise where `repaired`, to which it is added, has it."""
        if damage.key in repaired:
            raise damage
        repaired.add(damage.key)
        log.warning("%s; computing it again", damage)
        self._cache.remove(damage.key, missing_ok=True)

    def _missing(self, ways: Sequence[Sequence[FirstSamples]]) -> list[tuple[FirstSamples | None, FirstSamples]]:
        """List the steps that are to be computed, in order, each with the one before it."""
        missing: dict[str, tuple[FirstSamples | None, FirstSamples]] = {}
        for way in ways:
            # Whatever is there already is as good as computed from the beginning.
            for before, step in reversed([*pairwise([None, *way])]):
                if step is None or step.key in self._cache:
                    break
                missing.setdefault(step.key, (before, step))
        return sorted(missing.values(), key=lambda pair: pair[1].size)

    def _compute(self, before: FirstSamples | None, step: FirstSamples, progress: Progress) -> None:
        start = step.size - step.added
        sequences = self._sequences[start : step.size]
        about = {
            "model": self._model.name,
            "source": sequences.source,
            "samples": [0, step.size],
            "tokens": sum(map(len, self._sequences[: step.size].ids)),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "format": FORMAT,
        }
        done = 0
        with self._cache.resumed_entry(step.key, about) as entry:
            passes, carried = self._passes(entry, sequences)
            total = len(sequences) * len(passes)

            def advance(count: int) -> None:
                nonlocal done
                done += count
                progress(f"calibrating on samples {start + 1}-{step.size}", done, total)

            # The same batches in every pass: what is carried is carried by batch.
            at_a_time = tokens_at_a_time(self._blocks)
            for blocks in passes:
                recorded = record(self._model.module, blocks, sequences, advance, carried, self._route_all, at_a_time)
                for block, statistics in zip(blocks, recorded, strict=True):
                    means = with_packed_grams(statistics)
                    if before is not None:
                        earlier = self._cache.read(before.key, part_name(block))
                        means = merged(restored(earlier, block, torch.device("cpu")), means)
                    entry.write(part_name(block), flattened(means))
                following = blocks[-1].index + 1
                if carried is not None:
                    carried.record(following)
                elif blocks is not passes[-1]:
                    entry.record({"next": following})

    def _passes(self, entry: EntryWriter, sequences: Sequences) -> tuple[list[list[Block]], CarriedStates | None]:
        """Return which blocks are recorded together, of those that the entry lacks, and what spares passes others.

        That is None where one pass is enough, or where the model cannot begin at a block.
        """
        allowed = available_bytes(self._model.device) // 2 if self._max_memory is None else self._max_memory
        first, tokens = first_missing(entry), sum(map(len, sequences.ids))
        missing = self._blocks[first:]
        work = PASS_WORK if self._model.device.type == "cpu" else DEVICE_PASS_WORK
        passes = list(_groups(missing, allowed, work / tokens))
        names = [block.name for block in self._blocks]
        starts = [*([first] if first else []), *(blocks[0].index for blocks in passes[1:])]
        states = 0
        carried = None
        if starts and has_states(entry) == bool(first) and can_begin_at(self._model.module, names, starts):
            # Those before a pass, and those after it.
            states = 2 * tokens * self._model.module.config.get_text_config().hidden_size * self._model.dtype.itemsize
            carried = CarriedStates(self._model.module, names, entry)
        else:
            passes = list(_groups(missing, allowed))
        self._cache.require_free(stored_size(missing) + states)
        return passes, carried

    def _key(self, size: int) -> str:
        text = self._sequences[:size].fingerprint()
        # What was recorded before experts were known lacks them.
        experts = " experts" if any(block.experts for block in self._blocks) else ""
        route = " route-all" if self._route_all else ""
        return str(xxhash.xxh3_128_hexdigest(f"{FORMAT} {self._model.fingerprint} {text}{experts}{route}".encode()))


def _groups(blocks: Sequence[Block], max_memory: int, max_work: float = inf) -> Iterable[list[Block]]:
    """Yield consecutive blocks that are recorded together: a block, or more within both bounds.

    Their sums take at most `max_memory` bytes, and they multiply at most `max_work` times for a token.
    """
    group: list[Block] = []
    group_bytes = group_work = 0
    for block in blocks:
        size, work = statistics_bytes(block), _work(block)
        if size > max_memory:
            raise RunError(
                f"the statistics of {block.name} take {size / 1e9:.2f} GB and {max_memory / 1e9:.2f} GB are allowed; "
                "raise --max-memory or use another --device"
            )
        if group and (group_bytes + size > max_memory or group_work + work > max_work):
            yield group
            group, group_bytes, group_work = [], 0, 0
        group.append(block)
        group_bytes += size
        group_work += work
    if group:
        yield group


def _work(block: Block) -> int:
    """Count what a token is multiplied with: the weights, and itself for the Gram matrices."""
    return sum(prod(linear.shape) for linear in block.linears) + sum(site.inputs**2 for site in block.sites)
