"""Keep what was measured and tokenized, and find it again.

Responsible for the way of a `TrialResult` and of `Sequences` into the result store and back. Keys are made of what
determines the numbers - weights, tokens, setting, kind of device - so that equal work is recognised wherever it was
done, and nothing kept can be stale.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import xxhash

from objectives.plan_keys import plan_parts
from objectives.quantized_blocks import LayerResult
from objectives.scoring import Score
from objectives.text.sequences import Sequences
from objectives.trial import Bench, Outcome, TrialResult
from quant.plan import Plan
from quant.sizes import ModelSize
from storage.errors import DamagedEntryError, StoredValueError
from storage.results import ResultStore
from storage.typed_json import decode, encode

FORMAT = 6
"""Version of what is written; before 6 nothing was known of divergence."""
READABLE = (5, FORMAT)


def measurement_key(bench: Bench, plan: Plan | None, sequences: Sequences) -> str:
    """Return the key of one plan measured on `sequences`; None is full precision.

    Documents are part of it: equal tokens from other documents are another text to whoever compares scores.

    Raises:
        InputError: If there is not enough calibration text for the plan.
    """
    parts: list[object] = [FORMAT, bench.model.fingerprint, bench.model.device.type, sequences.fingerprint()]
    parts.append(sequences.clusters)
    if plan is not None:
        parts += plan_parts(bench.model, bench.blocks, bench.calibration, plan, bench.allow_partial_groups)
        refined = bench.refinement_of(plan)
        parts += [] if refined is None else [refined.key, refined.codes]
    if bench.original is not None:
        parts += ["of", bench.original.fingerprint]
    return str(xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode()))


@dataclass(frozen=True, kw_only=True)
class StoredResult:
    """What is stored of a result beside its tensors: the fields of `TrialResult` without the score, and a version."""

    format: int = FORMAT
    plan: Plan | None
    outcome: Outcome
    size: ModelSize
    layers: tuple[LayerResult, ...]
    seconds: Mapping[str, float]
    peak_bytes: int
    fingerprint: str | None = None


def save_result(store: ResultStore, key: str, result: TrialResult) -> None:
    """Write a result; its values per sequence in float64.

    Raises:
        StorageError: If the disk is full or refuses.
    """
    parts = {name: value for name, value in vars(result).items() if name != "score"}
    store.save(key, encode(StoredResult(**parts)), result.score.tensors if result.score else {})


def load_result(store: ResultStore, key: str) -> TrialResult:
    """Load what `save_result` wrote.

    Raises:
        DamagedEntryError: If the file is missing or damaged, or of another version's format.
    """
    record, tensors = store.load(key)
    form = record.get("format")
    if form not in READABLE:
        versions = " and ".join(map(str, READABLE))
        raise DamagedEntryError(
            key, f"the result {key} has format {form}, and this version reads {versions}; delete it"
        )
    try:
        parts = vars(decode(StoredResult, record, f"the result {key}"))
    except StoredValueError as error:
        raise DamagedEntryError(key, f"{error}; delete it") from error
    values = {name: value for name, value in parts.items() if name != "format"}
    return TrialResult(score=Score(**tensors) if tensors else None, **values)


def keep_measured(store: ResultStore, bench: Bench, sequences: Sequences, key: str, result: TrialResult) -> None:
    """Write a result on the first of `sequences`, or on all; the latter is then found by its weights, too.

    Raises:
        StorageError: If the disk is full or refuses.
    """
    save_result(store, key, result)
    if result.outcome == "complete" and result.fingerprint is not None:
        # After the result: whoever finds this record finds what it names.
        store.save(_weights_key(bench, result.fingerprint, sequences), {"result": key}, {})


def score_of_weights(store: ResultStore, bench: Bench, sequences: Sequences, fingerprint: str) -> Score | None:
    """Find the score on all sequences of whatever setting gave these weights; None where none is kept, or readable."""
    key = _weights_key(bench, fingerprint, sequences)
    if key not in store:
        return None
    try:
        record, _ = store.load(key)
        result = load_result(store, str(record.get("result")))
    except DamagedEntryError:
        # The model is at hand with these weights: it is scored, and the entry written anew.
        return None
    score = result.score
    return score if result.fingerprint == fingerprint and score and len(score.nll) == len(sequences) else None


def _weights_key(bench: Bench, fingerprint: str, sequences: Sequences) -> str:
    parts = [FORMAT, bench.model.fingerprint, bench.model.device.type, sequences.fingerprint(), sequences.clusters]
    return f"weights-{xxhash.xxh3_128_hexdigest(json.dumps([*parts, fingerprint]).encode())}"


def text_key(fingerprint: str) -> str:
    """Return the key of pinned token sequences."""
    return f"text-{fingerprint}"


def pin(store: ResultStore, sequences: Sequences) -> str:
    """Write token sequences, so that they can be read again without their source; returns their key."""
    key = text_key(sequences.fingerprint())
    if key not in store:
        tensors = {
            "ids": torch.cat(sequences.ids),
            "scored": torch.cat(sequences.scored),
            "lengths": torch.tensor([len(ids) for ids in sequences.ids]),
            "clusters": torch.tensor(sequences.clusters),
        }
        store.save(key, {"source": sequences.source}, tensors)
    return key


def pinned(store: ResultStore, key: str) -> Sequences:
    """Read what `pin` wrote.

    Raises:
        DamagedEntryError: If the file is missing or damaged.
    """
    record, tensors = store.load(key)
    lengths = tensors["lengths"].tolist()
    return Sequences(
        source=str(record["source"]),
        ids=tuple(part.clone() for part in torch.split(tensors["ids"], lengths)),
        scored=tuple(part.clone() for part in torch.split(tensors["scored"], lengths)),
        clusters=tuple(tensors["clusters"].tolist()),
    )
