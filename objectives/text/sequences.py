"""Token sequences: from documents to what a model is calibrated on and scored on, in one fixed seeded order.

Responsible for the two protocols, and for parts that share no document (`dealing`). `documents`: each text truncated
to `length` tokens, texts under 100 characters skipped, special tokens as the tokenizer adds them. `packed`: texts
joined by two newlines and cut into blocks of `length`, each begun with what the tokenizer puts before a text. May
assume a tokenizer of transformers, fast or in Python.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from objectives.errors import InputError
from objectives.text.bos import BEGINNINGS, Beginning, beginning
from objectives.text.dealing import LEFT_SHARES, Part, deal, deal_left_over, left_over
from objectives.text.overlap import count_repeats
from objectives.text.sources import read_documents

Protocol = Literal["documents", "packed"]
PROTOCOLS: tuple[Protocol, ...] = ("documents", "packed")
MIN_CHARACTERS = 100
SEPARATOR = "\n\n"
TOKENIZER_BATCH = 256
# A first guess at how much text makes the tokens that are wanted.
CHARACTERS_PER_TOKEN = 5
DRAWN_FROM = 1024
Piece = tuple[Tensor, Tensor, int, frozenset[int]]
"""Token ids `[L]`, which are scored `[L]`, the document they mostly come from, and all they take something from."""


@dataclass(frozen=True, kw_only=True)
class TextPlan:
    """Which text one part of the work reads.

    Attributes:
        source: A name that `objectives.text.sources.read_documents` knows.
        part: What the text is for; parts that read the same source get different documents of it.
        count: Sequences wanted.
        protocol: How documents become sequences.
        length: Tokens per sequence: at most (`documents`) or exactly (`packed`).
        minimum: Sequences that are enough where there are not `count`; None for all of them.
        bos: Whether a sequence begins with the token that says so: as the tokenizer does it by default, always, never.
    """

    source: str
    part: Part
    count: int
    protocol: Protocol = "packed"
    length: int = 512
    minimum: int | None = None
    bos: Beginning = "auto"

    def __post_init__(self) -> None:
        if self.bos not in BEGINNINGS:
            raise InputError(f"bos {self.bos!r} is unknown; choose {', '.join(BEGINNINGS)}")
        if self.protocol not in PROTOCOLS:
            raise InputError(f"protocol {self.protocol!r} is unknown; choose {' or '.join(PROTOCOLS)}")
        if self.length < 2 or self.count < 1:
            raise InputError(
                f"{self.count} sequences of {self.length} tokens were asked for; at least 1 of at least 2 are needed"
            )


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Token sequences of one source.

    Attributes:
        source: The name the text was asked for by.
        ids: int64 `[L]` each, `L` at least 2.
        scored: bool `[L]` each: True where the token counts as a target; never at position 0, never for a special
            token that the tokenizer added.
        clusters: For each sequence the document that most of it comes from; sequences of one document are not
            independent.
        prefix: Token ids that every sequence begins with, of no text.
    """

    source: str
    ids: tuple[Tensor, ...]
    scored: tuple[Tensor, ...]
    clusters: tuple[int, ...]
    prefix: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: slice) -> "Sequences":
        return replace(self, ids=self.ids[index], scored=self.scored[index], clusters=self.clusters[index])

    def picked(self, indices: Sequence[int]) -> "Sequences":
        """Pick those sequences, in that order."""
        return replace(
            self,
            ids=tuple(self.ids[index] for index in indices),
            scored=tuple(self.scored[index] for index in indices),
            clusters=tuple(self.clusters[index] for index in indices),
        )

    def fingerprint(self) -> str:
        """Hash the token ids and targets, in order, to 128 bits."""
        digest = xxhash.xxh3_128()
        for ids, scored in zip(self.ids, self.scored, strict=True):
            digest.update(len(ids).to_bytes(4, "little") + ids.numpy().tobytes() + scored.numpy().tobytes())
        return str(digest.hexdigest())


def prepare_text(plans: Sequence[TextPlan], tokenizer: Any, seed: int = 0) -> list[Sequences]:
    """Prepare the sequences of every plan, in its order; no two plans share a document.

    Raises:
        InputError: If a source is unusable, has too little text, or repeats another plan's text in other documents.
    """
    pools: dict[TextPlan, Sequences] = {}
    prepared: dict[TextPlan, Sequences] = {}
    for source in dict.fromkeys(plan.source for plan in plans):
        documents = read_documents(source, tokenizer)
        readers = [plan for plan in plans if plan.source == source and plan.part not in LEFT_SHARES]
        left = [plan for plan in plans if plan.source == source and plan.part in LEFT_SHARES]
        dealt = deal(documents, [plan.part for plan in readers], seed) if readers else {}
        used: set[str] = set()
        for plan in readers:
            pools[plan], prepared[plan], texts = _prepare(dealt[plan.part], tokenizer, plan, seed)
            used |= texts
        shared = any(plan.part != "calibration" for plan in readers)
        dealt = deal_left_over(left_over(documents, used, shared, seed), seed) if left else {}
        for plan in left:
            pools[plan], prepared[plan], _ = _prepare(dealt[plan.part], tokenizer, plan, seed)
    _require_disjoint(pools, prepared)
    return [prepared[plan] for plan in plans]


def _prepare(
    documents: Sequence[str], tokenizer: Any, plan: TextPlan, seed: int
) -> tuple[Sequences, Sequences, set[str]]:
    """Return the sequences that a plan's are drawn from, those that are drawn, and the documents that these read."""
    pieces = _pieces(documents, tokenizer, replace(plan, count=max(plan.count, DRAWN_FROM)))
    pool = _sequences(pieces, tokenizer, plan)
    order = _drawn(len(_enough(pool, plan)), plan, seed)
    used = {documents[index] for piece in order for index in pieces[piece][3]}
    return pool, pool.picked(order), used


def tokenize(documents: Sequence[str], tokenizer: Any, plan: TextPlan) -> Sequences:
    """Make the first `plan.count` sequences of `documents`, in their order; fewer if there are fewer."""
    return _sequences(_pieces(documents, tokenizer, plan), tokenizer, plan)


def _pieces(documents: Sequence[str], tokenizer: Any, plan: TextPlan) -> list[Piece]:
    make = _truncated if plan.protocol == "documents" else _packed
    return list(islice(make(documents, tokenizer, plan), plan.count))


def _sequences(pieces: Sequence[Piece], tokenizer: Any, plan: TextPlan) -> Sequences:
    return Sequences(
        source=plan.source,
        ids=tuple(ids for ids, *_ in pieces),
        scored=tuple(scored for _, scored, *_ in pieces),
        clusters=tuple(cluster for *_, cluster, _ in pieces),
        prefix=beginning(tokenizer, plan.bos),
    )


def _drawn(pieces: int, plan: TextPlan, seed: int) -> list[int]:
    """Draw the first `plan.count` of so many in a seeded order, the same for every count up to `DRAWN_FROM`.

    Neighbouring blocks of packed text mostly come from one document. Drawn from all over the text, as many blocks are
    of far more documents, which is what narrows an interval.
    """
    order = list(range(pieces))
    if plan.protocol == "packed":
        order.sort(key=lambda index: xxhash.xxh3_64_intdigest(index.to_bytes(8, "little"), seed))
    return order[: plan.count]


def _truncated(documents: Sequence[str], tokenizer: Any, plan: TextPlan) -> Iterator[Piece]:
    long_enough = [(index, text) for index, text in enumerate(documents) if len(text) >= MIN_CHARACTERS]
    usual, prefix = beginning(tokenizer, "auto"), torch.tensor(beginning(tokenizer, plan.bos), dtype=torch.int64)
    # What the tokenizer does not do by itself is put before what it does.
    added = prefix[:0] if plan.bos == "auto" or usual else prefix
    for start in range(0, len(long_enough), TOKENIZER_BATCH):
        batch = long_enough[start : start + TOKENIZER_BATCH]
        encoded = tokenizer(
            [text for _, text in batch],
            truncation=True,
            max_length=plan.length - len(added),
            return_special_tokens_mask=True,
            add_special_tokens=plan.bos != "never",
        )
        for (index, _), ids, special in zip(batch, encoded.input_ids, encoded.special_tokens_mask, strict=True):
            tokens = torch.tensor(ids, dtype=torch.int64)
            before = _lacking(added, tokens)
            scored = torch.cat([torch.zeros(len(before), dtype=torch.bool), ~torch.tensor(special, dtype=torch.bool)])
            scored[:1] = False
            if scored.any():
                yield torch.cat([before, tokens]), scored, index, frozenset((index,))


def _lacking(prefix: Tensor, ids: Tensor) -> Tensor:
    """Return the prefix, or nothing where `ids` begin with it themselves, as a chat template may have them do."""
    return prefix[:0] if torch.equal(ids[: len(prefix)], prefix) else prefix


def _packed(documents: Sequence[str], tokenizer: Any, plan: TextPlan) -> Iterator[Piece]:
    prefix = torch.tensor(beginning(tokenizer, plan.bos), dtype=torch.int64)
    length = plan.length - len(prefix)
    if length < 1:
        raise InputError(f"sequences of {plan.length} tokens have no room for text after the {len(prefix)} before it")
    scored = torch.ones(plan.length, dtype=torch.bool)
    scored[: max(1, len(prefix))] = False
    # One block more than wanted, so that where the text is cut off cannot show in the blocks that are used.
    tokens = (plan.count + 1) * plan.length
    join = _joined if getattr(tokenizer, "is_fast", False) else _joined_one_by_one
    ids, owners = join(documents, tokenizer, tokens)
    end = 0
    while (begin := end + len(prefix) - len(_lacking(prefix, ids[end:]))) + length <= len(ids):
        end = begin + length
        block = slice(begin, end)
        parts = np.bincount(owners[block])
        yield torch.cat([prefix, ids[block]]), scored, int(parts.argmax()), frozenset(parts.nonzero()[0].tolist())


def _joined(documents: Sequence[str], tokenizer: Any, tokens: int) -> tuple[Tensor, NDArray[np.int64]]:
    """Return the tokens of as many documents as make `tokens` of them, and the document that each comes from."""
    ends = np.cumsum([len(text) + len(SEPARATOR) for text in documents])
    taken = 1 + int(np.searchsorted(ends, CHARACTERS_PER_TOKEN * tokens))
    while True:
        # Joined before it is tokenized: a tokenizer may merge the end of a text with the newlines after it.
        # verbose=False: this is longer than the model's context, and is meant to be.
        encoded = tokenizer(
            SEPARATOR.join(documents[:taken]), add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        if len(encoded.input_ids) >= tokens or taken >= len(documents):
            break
        taken *= 2
    starts = np.array([start for start, _ in encoded.offset_mapping], dtype=np.int64)
    return torch.tensor(encoded.input_ids, dtype=torch.int64), np.searchsorted(ends, starts, side="right")


def _joined_one_by_one(documents: Sequence[str], tokenizer: Any, tokens: int) -> tuple[Tensor, NDArray[np.int64]]:
    """Do what `_joined` does for a tokenizer in Python, which does not know where in a text a token begins."""
    ids: list[int] = []
    owners: list[int] = []
    last = len(documents) - 1
    for index, text in enumerate(documents):
        whole = text if index == last else text + SEPARATOR
        own = tokenizer(whole, add_special_tokens=False, verbose=False).input_ids
        ids += own
        owners += [index] * len(own)
        if len(ids) >= tokens:
            break
    return torch.tensor(ids, dtype=torch.int64), np.array(owners, dtype=np.int64)


def _enough(sequences: Sequences, plan: TextPlan) -> Sequences:
    needed = min(plan.count, plan.minimum or plan.count)
    if len(sequences) < needed:
        raise InputError(
            f"{plan.source} has {plan.part} text for {len(sequences)} sequences of {plan.length} tokens, "
            f"not for {needed}; ask for fewer or shorter ones, or give more text"
        )
    return sequences


def _require_disjoint(pools: Mapping[TextPlan, Sequences], prepared: Mapping[TextPlan, Sequences]) -> None:
    """Refuse text that two parts share although no document of theirs is the same (one file cut from another, say)."""
    for (plan, sequences), (other, others) in product(pools.items(), prepared.items()):
        if other.source == plan.source or other.part == plan.part:
            continue
        repeated = count_repeats(sequences.ids, others.ids)
        if repeated:
            raise InputError(
                f"{repeated} of {len(others)} {other.part} sequences of {other.source} repeat {plan.part} text "
                f"of {plan.source}; give texts that do not overlap"
            )
