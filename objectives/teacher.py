"""The teacher: what full precision's head reads at every target, kept in the cache for all who compare with it.

Responsible for computing it once for all processes, for what it takes on the disk, and for reading it back without
holding all of it in memory. An entry is known by the weights, the tokens, the number type and the kind of device it
was computed on, so nothing else can make it wrong. May assume that the model holds its original weights when a teacher
is asked for. Shape letters: `N` rows, `F` features.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from objectives.forward import BATCH_TOKENS, Halves, halves, run_batches
from objectives.model.loading import Model
from objectives.progress import Progress
from objectives.text.batches import Batch
from objectives.text.sequences import Sequences
from storage.cache import TensorCache
from storage.errors import DamagedEntryError, LeaseLostError

log = logging.getLogger(__name__)

FORMAT = 1
# Sequences per part of an entry: what is in memory while it is written.
PART = 64
HIDDEN = "hidden"


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Full precision on some sequences.

    Attributes:
        rows: By sequence, `[N, F]` each: what the head reads at its targets, on the CPU; usually windows on a file.
        head: From rows `[N, F]` to logits `[N, V]`; None where the head of whoever is compared is the same.
    """

    rows: tuple[Tensor, ...]
    head: Callable[[Tensor], Tensor] | None = None

    def features(self, indices: Sequence[int]) -> Tensor:
        """Return what the head reads at the targets of these sequences, `[N, F]`, one after the other."""
        return torch.cat([self.rows[index] for index in indices])


@dataclass(frozen=True, kw_only=True)
class Original:
    """Full precision of the model that others were made of, which take its place in memory.

    Attributes:
        fingerprint: Of its weights.
        vocabulary: How many tokens it tells apart.
        teachers: By the fingerprint of the text; of no text where its head cannot do without the rest of the model.
    """

    fingerprint: str
    vocabulary: int
    teachers: Mapping[str, Teacher]

    def teacher(self, model: Model, sequences: Sequences) -> Teacher | None:
        """Return the teacher of a model that was made of it; None where they do not tell the same tokens apart."""
        return self.teachers.get(sequences.fingerprint()) if vocabulary_of(model) == self.vocabulary else None


def original_of(model: Model, texts: Sequence[Sequences], teachers: Sequence[Teacher | None]) -> Original:
    """Return full precision of a model on texts, with the head that its teachers need; of the rest nothing is held."""
    split = halves(model.module, texts[0])
    kept = {
        text.fingerprint(): replace(teacher, head=split.head)
        for text, teacher in zip(texts, teachers, strict=True)
        if teacher is not None and (split.whole or isinstance(split.head, nn.Module))
    }
    return Original(fingerprint=model.fingerprint, vocabulary=vocabulary_of(model), teachers=kept)


def vocabulary_of(model: Model) -> int:
    """Return how many tokens a model tells apart."""
    return int(model.module.config.get_text_config().vocab_size)


@torch.inference_mode()
def compute_teacher(module: Any, sequences: Sequences, phase: str, progress: Progress) -> Teacher:
    """Run a causal model on the sequences and keep what its head reads, in memory, with its head."""
    model = halves(module, sequences)
    parts = _parts(model, module.device, sequences, phase, progress)
    return Teacher(rows=tuple(rows for part in parts for rows in part), head=model.head)


def cached_teacher(model: Model, sequences: Sequences, cache: TensorCache, progress: Progress) -> Teacher:
    """Read the teacher of the sequences from the cache; it is computed once, whoever needs it first.

    A damaged entry is computed again.

    Raises:
        StorageError: If the cache cannot be written, or has no room.
        DamagedEntryError: If the entry is damaged once more after it was computed again.
    """
    key = teacher_key(model, sequences)
    try:
        return _present(model, sequences, key, cache, progress)
    except DamagedEntryError as damage:
        log.warning("%s; computing it again", damage)
        cache.remove(key, missing_ok=True)
        return _present(model, sequences, key, cache, progress)


def teacher_key(model: Model, sequences: Sequences) -> str:
    """Return the key of the entry: everything that determines its numbers."""
    parts = ("teacher", FORMAT, model.fingerprint, model.dtype, model.device.type, sequences.fingerprint())
    return str(xxhash.xxh3_128_hexdigest(" ".join(map(str, parts)).encode()))


def _present(model: Model, sequences: Sequences, key: str, cache: TensorCache, progress: Progress) -> Teacher:
    def waiting(_: str) -> None:
        progress("running full precision in another process", 0, 1)

    while key not in cache:
        # One process computes; one that lost its lease waits for its successor.
        with suppress(LeaseLostError), cache.lease(key, waiting):
            if key not in cache:
                _compute(model, sequences, key, cache, progress)
    counts = [int(scored[1:].sum()) for scored in sequences.scored]
    rows: list[Tensor] = []
    for start in range(0, len(sequences), PART):
        hidden = cache.window(key, _part(start))[HIDDEN]
        rows += torch.split(hidden, counts[start : start + PART])
    return Teacher(rows=tuple(rows))


@torch.inference_mode()
def _compute(model: Model, sequences: Sequences, key: str, cache: TensorCache, progress: Progress) -> None:
    model_halves = halves(model.module, sequences)
    size = _bytes(model, model_halves, sequences)
    cache.clear_unfinished(key)
    cache.require_free(size)
    phase = f"running full precision (kept in {size / 1e6:.1f} MB) on {sequences.source}"
    with cache.new_entry(key, _about(model, sequences)) as entry:
        for index, part in enumerate(_parts(model_halves, model.device, sequences, phase, progress)):
            entry.write(_part(index * PART), {HIDDEN: torch.cat(part)})


def _parts(
    model: Halves, device: torch.device, sequences: Sequences, phase: str, progress: Progress
) -> Iterator[list[Tensor]]:
    """Yield what the head reads at the targets of so many sequences at a time, `[N, F]` each, on the CPU."""
    batch_tokens = BATCH_TOKENS
    for start in range(0, len(sequences), PART):
        rows: dict[int, Tensor] = {}

        def keep(batch: Batch, rows: dict[int, Tensor] = rows) -> None:
            counts = batch.scored[:, 1:].sum(1).tolist()
            rows.update(zip(batch.indices, torch.split(model.scored(batch).cpu(), counts), strict=True))

        indices = range(start, min(start + PART, len(sequences)))
        batch_tokens = run_batches(sequences, indices, batch_tokens, device, keep)
        progress(phase, indices.stop, len(sequences))
        yield [rows[index] for index in indices]


def _bytes(model: Model, model_halves: Halves, sequences: Sequences) -> int:
    first = sequences[:1]
    rows: list[Tensor] = []
    run_batches(first, [0], BATCH_TOKENS, model.device, lambda batch: rows.append(model_halves.scored(batch)))
    targets = sum(int(scored.sum()) for scored in sequences.scored)
    return targets * rows[0].shape[-1] * rows[0].element_size()


def _about(model: Model, sequences: Sequences) -> Mapping[str, object]:
    return {
        "model": model.name,
        "source": sequences.source,
        "holds": "last hidden states of full precision",
        "samples": [0, len(sequences)],
        "tokens": sum(map(len, sequences.ids)),
        "dtype": str(model.dtype).removeprefix("torch."),
        "format": FORMAT,
    }


def _part(start: int) -> str:
    return f"sequences-{start:05d}"
