"""Keep what was measured and tokenized, and find it again.

Responsible for the way of a `TrialResult` and of `Sequences` into the result store and back. Keys are made of what
determines the numbers - weights, tokens, setting, kind of device - so that equal work is recognised wherever it was
done, and nothing kept can be stale.
"""

import json
from dataclasses import asdict

import torch
import xxhash

from objectives.quantization import LayerResult
from objectives.scoring import Score
from objectives.text.sequences import Sequences
from objectives.trial import Bench, TrialResult
from quant.plan import Plan
from quant.sizes import ModelSize
from storage.errors import DamagedEntryError
from storage.results import ResultStore

FORMAT = 5


def measurement_key(bench: Bench, plan: Plan | None, sequences: Sequences) -> str:
    """Return the key of one plan measured on `sequences`; None is full precision.

    Documents are part of it: equal tokens from other documents are another text to whoever compares scores.

    Raises:
        InputError: If there is not enough calibration text for the plan.
    """
    parts: list[object] = [FORMAT, bench.model.fingerprint, bench.model.device.type, sequences.fingerprint()]
    parts.append(sequences.clusters)
    if plan is not None:
        parts += [_canonical(plan), bench.allow_partial_groups, str(bench.model.stored_dtype)]
        parts += [segment.key for size in _sizes(plan) for segment in bench.calibration.segments(size)]
    return str(xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode()))


def _canonical(plan: Plan) -> dict[str, object]:
    """Say what a plan does, without what its methods do not read; a uniform plan does what its setting does."""
    if plan.only is not None:
        return plan.only.canonical().as_dict()
    others = plan.others and plan.others.canonical()
    named = {linear: setting.canonical() for linear, setting in plan.named.items()}
    return Plan(named=named, others=others).as_dict()


def _sizes(plan: Plan) -> list[int]:
    return sorted({setting.n_calib for setting in plan.settings})


def save_result(store: ResultStore, key: str, result: TrialResult) -> None:
    """Write a result; NLL per sequence in float64.

    Raises:
        StorageError: If the disk is full or refuses.
    """
    record = {
        "format": FORMAT,
        "plan": None if result.plan is None else result.plan.as_dict(),
        "outcome": result.outcome,
        "size": asdict(result.size),
        "layers": [asdict(layer) for layer in result.layers],
        "seconds": dict(result.seconds),
        "peak_bytes": result.peak_bytes,
    }
    score = result.score
    tensors = {} if score is None else vars(score)
    store.save(key, record, tensors)


def load_result(store: ResultStore, key: str) -> TrialResult:
    """Load what `save_result` wrote.

    Raises:
        DamagedEntryError: If the file is missing or damaged, or of another version's format.
    """
    record, tensors = store.load(key)
    values: dict[str, object] = dict(record)
    form = values.pop("format", None)
    if form != FORMAT:
        raise DamagedEntryError(key, f"the result {key} has format {form}, and this version reads {FORMAT}; delete it")
    plan, size = values["plan"], values["size"]
    values["plan"] = None if plan is None else Plan.from_dict(plan)  # type: ignore[arg-type]
    values["size"] = ModelSize(**size)  # type: ignore[arg-type]
    values["layers"] = tuple(LayerResult(**layer) for layer in values["layers"])  # type: ignore[attr-defined]
    score = Score(**tensors) if tensors else None
    return TrialResult(score=score, **values)  # type: ignore[arg-type]


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
