"""Is a model already quantized, how, and from what was it made?

Responsible for what its configuration, the manifest that we write and its card say; nothing is loaded. May assume a
transformers configuration.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from objectives.errors import InputError
from storage.errors import StoredValueError
from storage.typed_json import decode_known

T = TypeVar("T")
FORMAT, DENSE = 2, "dense"
RECORD, CARD = "praqtune.json", "README.md"
"""What we write about a model directory, and for whoever reads it."""
BASE_MODEL = re.compile(r"^base_model:\s*(?:-\s*)?[\"']?([^\s\"']+)", re.MULTILINE)
# What configurations call the bits of a weight, by the method where only its name says them.
BITS_KEYS = ("bits", "num_bits", "w_bit", "nbits", "weight_bits", "wbits")
BITS_OF_METHOD = {"fp8": 8.0, "fbgemm_fp8": 8.0, "mxfp8": 8.0, "mxfp4": 4.0, "nvfp4": 4.0, "bitnet": 2.0}
SCALE_BITS = 16
# Where AutoGPTQ, AutoAWQ and ModelOpt say it instead of in config.json.
SIDE_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


@dataclass(frozen=True, kw_only=True)
class AlreadyQuantized:
    """How a model is quantized.

    Attributes:
        method: As it is called.
        bits: Per weight, with scales, as far as that is said; None where nothing says.
        original: What it was made from; None where nothing says.
        supported: Whether the installed transformers knows the method.
        dense: Whether its weights are stored as those of any other model.
    """

    method: str
    bits: float | None
    original: str | None
    supported: bool = True
    dense: bool = False

    def __str__(self) -> str:
        bits = "" if self.bits is None else f", {self.bits:.3f} bits per weight"
        return f"already quantized ({self.method}{bits})"

    @property
    def remedy(self) -> str:
        """Say where the original may be."""
        if self.original is None:
            return "give the original, which the page of this model may name as its base model"
        return f"give the original, {self.original}"


@dataclass(frozen=True, kw_only=True)
class ModelOrigin:
    """The model that was quantized.

    Attributes:
        name: On the hub, or its directory.
        commit: Of a hub model.
        dtype: What it was run in.
        stored_as: The type of its stored weights.
        fingerprint: Of its weights.
    """

    name: str
    commit: str | None
    dtype: str
    stored_as: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The fields of a model directory's manifest that say what the model is (`objectives.export.manifest`)."""

    weights: str
    method: str
    parameters: Mapping[str, object]
    bits_per_weight: float
    model_bytes: int
    model: ModelOrigin


def read_provenance(directory: Path) -> Provenance | None:
    """Return what the model of a directory is; see `read_manifest`."""
    return read_manifest(directory, Provenance)


def read_manifest(directory: Path, kind: type[T]) -> T | None:
    """Return what the manifest of a model directory says; None for a directory that was made otherwise.

    Args:
        directory: Of a model.
        kind: The fields to read: `Provenance`, or all of them, `objectives.export.manifest.Manifest`.

    Raises:
        InputError: If it is a manifest and damaged.
    """
    path = directory / RECORD
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        return None
    try:
        return decode_known(kind, stored, str(path))
    except StoredValueError as error:
        raise InputError(f"{error}; write the model again with `quantize`, or take the file away") from None


def already_quantized(config: Any, directory: Path) -> AlreadyQuantized | None:
    """Return how a model is quantized; None for one in full precision.

    Args:
        config: Its configuration.
        directory: Where its files are; absent for a model of the hub.

    Raises:
        InputError: If the directory's manifest is damaged.
    """
    declared = _declared(config)
    provenance = read_provenance(directory)
    if declared is None and provenance is None:
        return _said_elsewhere(config, directory)
    values: Mapping[str, Any] = (
        declared if isinstance(declared, Mapping) else {} if declared is None else declared.to_dict()
    )
    if provenance is not None:
        return AlreadyQuantized(
            method=f"{provenance.weights} by praqtune: {provenance.method}",
            bits=provenance.bits_per_weight,
            original=provenance.model.name,
            supported=declared is not None or provenance.weights == DENSE,
            dense=provenance.weights == DENSE,
        )
    method = str(values.get("quant_method", "a method that its configuration does not name"))
    return AlreadyQuantized(
        method=method,
        bits=_bits(method, values),
        original=_base_model(directory),
        supported=_is_supported(method, values),
    )


def _declared(config: Any) -> Any:
    """Return what the configuration, or that of the part that is text, says where transformers looks for it."""
    parts = (config, config.get_text_config()) if hasattr(config, "get_text_config") else (config,)
    declared = [getattr(part, "quantization_config", None) for part in parts]
    return next((values for values in declared if values is not None), None)


def declared_method(directory: Path) -> str | None:
    """Return the method by which the `config.json` of a directory says it is quantized; None where it says none."""
    config = _json_object(directory / "config.json")
    declared = config.get("quantization_config") if isinstance(config, Mapping) else None
    method = declared.get("quant_method") if isinstance(declared, Mapping) else None
    return method if isinstance(method, str) else None


def _said_elsewhere(config: Any, directory: Path) -> AlreadyQuantized | None:
    """Return what is said where transformers does not look, and would take the codes for weights."""
    places = [("compression_config", getattr(config, "compression_config", None))]
    places += [(name, _json_object(directory / name)) for name in SIDE_FILES]
    for where, values in places:
        if isinstance(values, Mapping):
            inner = values.get("quantization")
            named = values.get("quant_method") or (inner.get("quant_algo") if isinstance(inner, Mapping) else None)
            return AlreadyQuantized(
                method=f"{named} by {where}" if named else f"by {where}",
                bits=_bits(str(named), values),
                original=_base_model(directory),
                supported=False,
            )
    return None


def _json_object(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _is_supported(method: str, values: Mapping[str, Any]) -> bool:
    loaded_in = values.get("load_in_4bit") or values.get("load_in_8bit")
    return bool(loaded_in) or method == "bitsandbytes" or method in AUTO_QUANTIZATION_CONFIG_MAPPING


def _bits(method: str, values: Mapping[str, Any]) -> float | None:
    if values.get("load_in_8bit"):
        return 8.0
    if values.get("load_in_4bit"):
        return 4.0
    for part in (values, *_weight_groups(values)):
        bits = next((number for key in BITS_KEYS if (number := _number(part.get(key))) is not None), None)
        if bits is not None:
            size = _number(part.get("group_size")) or 0.0
            # One scale per group and, where the codes are not around zero, its zero point.
            symmetric = bool(part.get("symmetric", part.get("sym", not part.get("zero_point", False))))
            return bits + (SCALE_BITS + (0.0 if symmetric else bits)) / size if size > 0 else bits
    return BITS_OF_METHOD.get(method)


def _weight_groups(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Return what compressed-tensors says of the weights of each group of layers."""
    groups = values.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            yield weights


def _base_model(directory: Path) -> str | None:
    try:
        line = BASE_MODEL.search((directory / CARD).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return line.group(1) if line else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
