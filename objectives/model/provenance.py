"""Is a model already quantized, how, and from what was it made?

Responsible for what its configuration, the record that we write and its card say; nothing is loaded. May assume a
transformers configuration.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

FORMAT = 2
RECORD, CARD = "praqtune.json", "README.md"
"""What we write about a model directory, and for whoever reads it."""
BASE_MODEL = re.compile(r"^base_model:\s*(?:-\s*)?[\"']?([^\s\"']+)", re.MULTILINE)
# What configurations call the bits of a weight, by the method where only its name says them.
BITS_KEYS = ("bits", "num_bits", "w_bit", "nbits", "weight_bits", "wbits")
BITS_OF_METHOD = {"fp8": 8.0, "fbgemm_fp8": 8.0, "mxfp8": 8.0, "mxfp4": 4.0, "nvfp4": 4.0, "bitnet": 2.0}
SCALE_BITS = 16


@dataclass(frozen=True, kw_only=True)
class AlreadyQuantized:
    """How a model is quantized.

    Attributes:
        method: As it is called.
        bits: Per weight, with scales, as far as that is said; None where nothing says.
        original: What it was made from; None where nothing says.
        known: Whether the installed transformers knows the method.
        dense: Whether its weights are stored as those of any other model.
    """

    method: str
    bits: float | None
    original: str | None
    known: bool = True
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


def read_record(directory: Path) -> dict[str, Any] | None:
    """Return what `write_record` wrote about a model directory; None for one that was made otherwise."""
    try:
        record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def already_quantized(config: Any, directory: Path) -> AlreadyQuantized | None:
    """Return how a model is quantized; None for one in full precision.

    Args:
        config: Its configuration.
        directory: Where its files are; absent for a model of the hub.
    """
    said = getattr(config, "quantization_config", None)
    record = read_record(directory)
    if said is None and record is None:
        return None
    values: Mapping[str, Any] = said if isinstance(said, Mapping) else {} if said is None else said.to_dict()
    if record is not None:
        return AlreadyQuantized(
            method=f"{record.get('weights')} by praqtune: {record.get('method')}",
            bits=_number(record.get("bits_per_weight")),
            original=_text(record.get("model"), "name"),
            dense=said is None,
        )
    method = str(values.get("quant_method", "a method that its configuration does not name"))
    return AlreadyQuantized(
        method=method, bits=_bits(method, values), original=_base_model(directory), known=_is_known(method, values)
    )


def _is_known(method: str, values: Mapping[str, Any]) -> bool:
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
        found = BASE_MODEL.search((directory / CARD).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found.group(1) if found else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: object, key: str) -> str | None:
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, str) else None
