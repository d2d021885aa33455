"""Say of a model directory what it is and how it came about.

Responsible for `praqtune.json`, whatever the format of the weights; docs/deploy.md describes it. Whoever loads models
reads the part of it that `objectives.model.provenance` declares. May assume that the bench was laid out for the model.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from objectives.model.provenance import FORMAT, RECORD, ModelOrigin
from objectives.model.roles import quantized_part
from objectives.plan_files import LinearsSetting, linears_settings, parameters
from objectives.quantization import model_size
from objectives.quantized_blocks import LayerResult
from objectives.refinement_record import Refinement
from objectives.trial import Bench
from objectives.versions import versions
from quant.plan import MIXED, Plan
from quant.sizes import ModelSize
from storage.files import write_file
from storage.typed_json import encode


@dataclass(frozen=True, kw_only=True)
class CalibrationOrigin:
    """The calibration sequences that were read: where they are from, how many, and the hash of their tokens.

    `route_all` says whether every expert of a mixture read all of their tokens.
    """

    source: str
    samples: int
    fingerprint: str
    route_all: bool = False


@dataclass(frozen=True, kw_only=True)
class ProvenScore:
    """What a directory was proven by: tensors, and perplexities on `sequences` sequences of `source`.

    Attributes:
        source: Of the text.
        sequences: How many were scored.
        measured: When it was quantized.
        unfolded: With every folded scale undone.
        packed: In a fresh process that had loaded the directory.
        reader: What loaded it there: packages that others wrote, or our reading of the format's specification.
        tensors: How many of the model's tensors were equal there to those that were measured: all, or nothing is
            written. None where they were not compared, as before they were.
        linears: How many quantized Linears have their codes in them.
        noise: How far apart the perplexities could be by the other roundings of a runtime's arithmetic, as a share:
            half of the 95 % interval of the paired difference. None where no values per sequence were kept.
    """

    source: str
    sequences: int
    measured: float
    unfolded: float
    packed: float
    reader: str
    tensors: int | None = None
    linears: int | None = None
    noise: float | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything needed to know the model again and to make it again.

    Attributes:
        format: Version of these fields.
        weights: How they are stored: the name of the format.
        method: How it was quantized; `mixed` where Linears have different settings.
        parameters: What the method reads.
        settings: Each setting with its Linears, where there are several.
        bits_per_weight: Over the matrices of the decoder blocks, counted from the plan.
        model_bytes: Of the whole model when packed.
        size: What the bytes are spent on.
        model: What was quantized.
        part: Which part of a model of several parts that was; None for a language model.
        calibration: Text that statistics come from.
        versions: Of packages.
        layers: What was chosen for each Linear.
        stored_bits_per_weight: As `bits_per_weight`, counted in the file; None where it is not packed.
        proof: What the directory scored before it appeared; None where the format is not proven.
        refinement: How its scales, norms and biases were tuned; None where they are as they were rounded.
        notes: What the format could not hold exactly, as counted.
        files: SHA-256 of every other file that was proven, by its name; none where the format is not proven.
    """

    format: int = FORMAT
    weights: str
    method: str
    parameters: Mapping[str, object]
    settings: tuple[LinearsSetting, ...] = ()
    bits_per_weight: float
    model_bytes: int
    size: ModelSize
    model: ModelOrigin
    part: str | None
    calibration: CalibrationOrigin
    versions: Mapping[str, str]
    layers: tuple[LayerResult, ...]
    stored_bits_per_weight: float | None = None
    proof: ProvenScore | None = None
    refinement: Refinement | None = None
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Put a manifest into a model directory.

    Raises:
        StorageError: If the disk is full or refuses.
    """
    write_file(directory / RECORD, json.dumps(encode(manifest), indent=1).encode())


def file_hashes(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a model directory but its manifest, by its name there."""
    hashes = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != RECORD:
            with path.open("rb") as file:
                hashes[path.relative_to(directory).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def make_manifest(bench: Bench, plan: Plan, layers: Sequence[LayerResult], weights: str) -> Manifest:
    """Describe a quantized model; `weights` says how they are stored. What was proven is added by who proves it."""
    model, text = bench.model, bench.calibration.text[: plan.n_calib]
    size = model_size(model, bench.blocks, plan)
    only, refined = plan.only, bench.refinement_of(plan)
    return Manifest(
        weights=weights,
        method=MIXED if only is None else only.method,
        parameters={} if only is None else parameters(only),
        settings=linears_settings(plan, [layer.name for layer in layers]) if only is None else (),
        bits_per_weight=size.bits_per_weight,
        model_bytes=size.model_bytes,
        size=size,
        model=ModelOrigin(
            name=model.name,
            commit=model.commit,
            dtype=str(model.dtype).removeprefix("torch."),
            stored_as=str(model.stored_dtype).removeprefix("torch."),
            fingerprint=model.fingerprint,
        ),
        part=quantized_part(model.module, bench.blocks),
        calibration=CalibrationOrigin(
            source=text.source,
            samples=len(text),
            fingerprint=text.fingerprint(),
            route_all=bench.calibration.route_all,
        ),
        versions=versions(),
        layers=tuple(layers),
        refinement=None if refined is None else refined.refinement,
    )
