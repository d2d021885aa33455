"""Calibration through the cache: statistics of any calibration size, computed once for all processes and studies.

Responsible for cutting the calibration sequences into segments, for computing the missing ones, and for merging them
into prefixes. A segment is known by the model and the very tokens it was computed from, so nothing else - no trial
parameter, no name, no other size - can make an entry wrong, and a later study that wants more samples only adds
segments. May assume that the model holds its original weights.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import torch
import xxhash
from torch import Tensor

from objectives.calibration.recording import BlockStatistics, record, statistics_bytes
from objectives.calibration.shrinking import shrunk_inputs, shrunk_outputs
from objectives.errors import InputError, RunError
from objectives.model.loading import Model, available_bytes
from objectives.model.roles import Block
from objectives.progress import Progress
from objectives.text.sequences import Sequences
from quant.statistics import InputStatistics, OutputStatistics, Statistics, merge, pack_symmetric, unpack_symmetric
from storage.cache import TensorCache
from storage.errors import DamagedEntryError, LeaseLostError

log = logging.getLogger(__name__)

FORMAT = 3
FIRST_BOUNDARY = 16


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The sequences `start..end` of the calibration text, and the cache key of their statistics."""

    start: int
    end: int
    key: str


def boundaries(size: int) -> list[int]:
    """Return where the first `size` samples are cut: at 16, 32, ... so that sizes share prefixes, and at the end."""
    cuts = []
    cut = FIRST_BOUNDARY
    while cut < size:
        cuts.append(cut)
        cut *= 2
    return [0, *cuts, size]


class Calibration:
    """Statistics of one model on one calibration text, at any size up to all of it.

    Reading needs no forward pass once the segments are in the cache. Any number of processes may do this at the same
    time; each missing segment is computed by one of them.
    """

    def __init__(
        self,
        model: Model,
        blocks: Sequence[Block],
        sequences: Sequences,
        cache: TensorCache,
        max_memory: int | None = None,
    ) -> None:
        """Prepare; nothing is computed yet.

        Args:
            model: The full-precision model.
            blocks: Its decoder blocks.
            sequences: All the calibration text, in its fixed order.
            cache: Where statistics are kept.
            max_memory: Bytes that sums may take on the device; blocks are recorded in several passes beyond it.
        """
        self._model = model
        self._blocks = blocks
        self._sequences = sequences
        self._cache = cache
        self._max_memory = max_memory

    @property
    def text(self) -> Sequences:
        """Return all the calibration text, in its fixed order."""
        return self._sequences

    @property
    def cache(self) -> TensorCache:
        """Return where statistics are kept."""
        return self._cache

    def segments(self, size: int) -> list[Segment]:
        """Return the segments whose merged statistics are those of the first `size` samples.

        Raises:
            InputError: If there are not so many samples.
        """
        if not 1 <= size <= len(self._sequences):
            raise InputError(
                f"n_calib {size} is outside the 1..{len(self._sequences)} samples of {self._sequences.source}"
            )
        cuts = boundaries(size)
        return [Segment(start=start, end=end, key=self._key(start, end)) for start, end in pairwise(cuts)]

    def ensure(self, sizes: Iterable[int], progress: Progress) -> int:
        """Make sure that the statistics of every size are in the cache; returns how many samples had to be read.

        Raises:
            InputError: If a size exceeds the text.
            RunError: If a block's sums alone exceed the memory.
            StorageError: If the cache cannot be written, or has no room.
        """
        segments = {segment.key: segment for size in sorted(sizes) for segment in self.segments(size)}
        computed = 0
        messages: set[str] = set()

        def waiting(text: str) -> None:
            if text not in messages:
                log.warning("%s", text)
            messages.add(text)
            progress("calibrating in another process", 0, 1)

        while self._missing(segments):
            # One process at a time computes for a model; one that lost its lease waits for its successor.
            with suppress(LeaseLostError), self._cache.lease(self._model.fingerprint, waiting):
                for segment in self._missing(segments):
                    self._compute(segment, progress)
                    computed += segment.end - segment.start
        return computed

    def read(self, block: Block, size: int) -> BlockStatistics:
        """Return the statistics of one block over the first `size` samples, on the model's device.

        Those of experts are shrunk towards their pool.

        Raises:
            DamagedEntryError: If an entry is damaged; `discard` it and `ensure` again.
        """
        parts = [self._cache.read(segment.key, _part(block)) for segment in self.segments(size)]
        return _merged(parts, block, self._model.device)

    def discard(self, damage: DamagedEntryError) -> None:
        """Remove a damaged entry, so that it is computed again."""
        log.warning("%s; computing it again", damage)
        self._cache.remove(damage.key, missing_ok=True)

    def _missing(self, segments: Mapping[str, Segment]) -> list[Segment]:
        return [segment for key, segment in segments.items() if key not in self._cache]

    def _compute(self, segment: Segment, progress: Progress) -> None:
        allowed = available_bytes(self._model.device) // 2 if self._max_memory is None else self._max_memory
        passes = list(_groups(self._blocks, allowed))
        self._cache.clear_unfinished(segment.key)
        self._cache.require_free(segment_bytes(self._blocks))
        sequences = self._sequences[segment.start : segment.end]
        total = len(sequences) * len(passes)
        about = {
            "model": self._model.name,
            "source": sequences.source,
            "samples": [segment.start, segment.end],
            "tokens": sum(map(len, sequences.ids)),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "format": FORMAT,
        }
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(f"calibrating on samples {segment.start + 1}-{segment.end}", done, total)

        with self._cache.new_entry(segment.key, about) as entry:
            for blocks in passes:
                recorded = record(self._model.module, blocks, sequences, advance)
                for block, statistics in zip(blocks, recorded, strict=True):
                    entry.write(_part(block), _flattened(statistics))

    def _key(self, start: int, end: int) -> str:
        text = self._sequences[start:end].fingerprint()
        # What was recorded before experts were known lacks them.
        experts = " experts" if any(block.experts for block in self._blocks) else ""
        return str(xxhash.xxh3_128_hexdigest(f"{FORMAT} {self._model.fingerprint} {text}{experts}".encode()))


def _groups(blocks: Sequence[Block], max_memory: int) -> Iterable[list[Block]]:
    """Yield consecutive blocks whose sums fit into `max_memory` bytes together."""
    group: list[Block] = []
    group_bytes = 0
    for block in blocks:
        size = statistics_bytes(block)
        if size > max_memory:
            raise RunError(
                f"the statistics of {block.name} take {size / 1e9:.2f} GB and {max_memory / 1e9:.2f} GB are allowed; "
                "raise --max-memory or use another --device"
            )
        if group_bytes + size > max_memory:
            yield group
            group, group_bytes = [], 0
        group.append(block)
        group_bytes += size
    yield group


def segment_bytes(blocks: Sequence[Block]) -> int:
    """Return the bytes of one segment on the disk, but for vectors: packed float32 Gram matrices."""
    return sum(4 * (site.inputs // 2 + 1) * site.inputs for block in blocks for site in block.sites)


def _part(block: Block) -> str:
    return f"block-{block.index:03d}"


def _flattened(statistics: BlockStatistics) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    named: list[tuple[str, InputStatistics | OutputStatistics]] = [
        *statistics.inputs.items(),
        *statistics.outputs.items(),
    ]
    for name, means in named:
        for field in fields(means):
            value = torch.as_tensor(getattr(means, field.name))
            # Cloned: the format refuses tensors that share memory, as importances of two placements may.
            tensors[f"{name}/{field.name}"] = pack_symmetric(value) if field.name == "gram" else value.clone()
    return tensors


def _merged(parts: Sequence[Mapping[str, Tensor]], block: Block, device: torch.device) -> BlockStatistics:
    def merged(kind: type[Statistics], name: str) -> Statistics:
        return merge([_restored(kind, name, part, device) for part in parts])

    inputs = shrunk_inputs(block, {site.name: merged(InputStatistics, site.name) for site in block.sites})
    outputs = {linear.name: merged(OutputStatistics, linear.name) for linear in block.linears}
    return BlockStatistics(
        inputs={name: replace(means, gram=unpack_symmetric(means.gram)) for name, means in inputs.items()},
        outputs=shrunk_outputs(block, outputs),
    )


def _restored(kind: type[Statistics], name: str, part: Mapping[str, Tensor], device: torch.device) -> Statistics:
    """Restore statistics as they were stored, Gram matrices still packed: merging then needs half the arithmetic."""
    tensors = {field.name: part[f"{name}/{field.name}"] for field in fields(kind)}
    tokens = int(tensors.pop("tokens"))
    return kind(tokens=tokens, **{field: tensor.to(device) for field, tensor in tensors.items()})
