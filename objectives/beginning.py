"""Does a model need the token that begins a text? Full precision with and without it, on a few short sequences.

Responsible for the warning where the choice that was made costs much: some models hardly work without one, and a study
of such a regime says nothing of the model. May assume original weights. The answer is kept, because it only depends on
the model and the text.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import xxhash

from objectives.model.loading import Model
from objectives.progress import Progress
from objectives.scoring import score_all
from objectives.text.sequences import Sequences
from storage.errors import DamagedEntryError, StoredValueError
from storage.results import ResultStore
from storage.typed_json import decode, encode

SEQUENCES, TOKENS = 8, 64
MOST_COST = 0.5


@dataclass(frozen=True, kw_only=True)
class Beginnings:
    """Mean NLL in nats per token of the same text, with and without the token that begins a text; `chosen` was."""

    chosen: str
    with_it: float
    without_it: float

    @property
    def cost(self) -> float:
        """Return what the choice costs in nats per token; negative where it gains."""
        difference = self.with_it - self.without_it
        return difference if self.chosen == "with" else -difference

    def __str__(self) -> str:
        remedy = "never" if self.chosen == "with" else "always"
        return (
            f"full precision has {self.without_it:.2f} nats per token without a beginning-of-text token and "
            f"{self.with_it:.2f} with one, on {SEQUENCES} short sequences, and these are scored {self.chosen} it; "
            f"--bos {remedy} is what the model works with"
        )


def beginning_note(model: Model, sequences: Sequences, store: ResultStore, progress: Progress) -> str | None:
    """Return a warning where the choice costs more than half a nat per token; None where it does not, or cannot."""
    other = sequences.prefix or _bos(model)
    if not other:
        return None
    short = _shortened(sequences[:SEQUENCES])
    ways = {"with": _begun(short, other), "without": _begun(short, ())}
    prints = " ".join(way.fingerprint() for way in ways.values())
    key = xxhash.xxh3_128_hexdigest(f"beginning {model.fingerprint} {bool(sequences.prefix)} {prints}".encode())
    beginnings = _stored(store, key)
    if beginnings is None:
        scores = {
            name: score_all(model.module, way, "scoring with and without a beginning", progress).mean_nll
            for name, way in ways.items()
        }
        chosen = "with" if sequences.prefix else "without"
        beginnings = Beginnings(chosen=chosen, with_it=scores["with"], without_it=scores["without"])
        store.save(key, encode(beginnings), {})
    return str(beginnings) if beginnings.cost > MOST_COST else None


def _bos(model: Model) -> tuple[int, ...]:
    number = getattr(model.tokenizer, "bos_token_id", None)
    embeddings: Any = model.module.get_input_embeddings().weight
    return () if number is None or number >= len(embeddings) else (int(number),)


def _shortened(sequences: Sequences) -> Sequences:
    """Return the beginnings of the texts, without what was put before them."""
    start = len(sequences.prefix)
    return replace(
        sequences,
        ids=tuple(ids[start : start + TOKENS] for ids in sequences.ids),
        scored=tuple(scored[start : start + TOKENS] for scored in sequences.scored),
        prefix=(),
    )


def _begun(short: Sequences, prefix: tuple[int, ...]) -> Sequences:
    """Return the texts with a prefix; the targets are the same with any."""
    return replace(
        short,
        ids=tuple(torch.cat([torch.tensor(prefix, dtype=torch.int64), ids]) for ids in short.ids),
        scored=tuple(torch.cat([torch.zeros(len(prefix), dtype=torch.bool), part]) for part in _targets(short)),
        prefix=prefix,
    )


def _targets(short: Sequences) -> Iterator[torch.Tensor]:
    for scored in short.scored:
        targets = scored.clone()
        targets[:1] = False
        yield targets


def _stored(store: ResultStore, key: str) -> Beginnings | None:
    if key not in store:
        return None
    try:
        return decode(Beginnings, store.load(key)[0], f"the comparison {key}")
    except (DamagedEntryError, StoredValueError):
        store.remove(key)
        return None
