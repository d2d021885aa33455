"""Say of a model directory what it is and how it came about.

Responsible for the record `praqtune.json`, whatever the format of the weights. May assume that the bench was laid out
for the model.
"""

import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from objectives.model.provenance import FORMAT, RECORD
from objectives.model.roles import quantized_part
from objectives.quantization import LayerResult, model_size
from objectives.trial import Bench
from quant.plan import MIXED, Plan
from quant.setting import Setting
from quant.sizes import ModelSize
from storage.files import write_file
from storage.typed_json import encode

VERSIONS_OF = ("praqtune", "torch", "transformers")


def write_record(directory: Path, record: dict[str, Any]) -> None:
    """Put a record into a model directory.

    Raises:
        StorageError: If the disk is full or refuses.
    """
    write_file(directory / RECORD, json.dumps(record, indent=1).encode())


def make_record(bench: Bench, plan: Plan, layers: Sequence[LayerResult], weights: str) -> dict[str, Any]:
    """Everything needed to know the model again and to make it again, JSON-able; `weights` says how they are stored."""
    text = bench.calibration.text[: plan.n_calib]
    return {
        "format": FORMAT,
        "weights": weights,
        **_settings(plan, [layer.name for layer in layers]),
        **_size(model_size(bench.model, bench.blocks, plan)),
        "model": {
            "name": bench.model.name,
            "commit": bench.model.commit,
            "dtype": str(bench.model.dtype).removeprefix("torch."),
            "stored_as": str(bench.model.stored_dtype).removeprefix("torch."),
            "fingerprint": bench.model.fingerprint,
        },
        "part": quantized_part(bench.model.module, bench.blocks),
        "calibration": {"source": text.source, "samples": len(text), "fingerprint": text.fingerprint()},
        "versions": {package: _version(package) for package in VERSIONS_OF},
        "layers": encode(layers),
    }


def _settings(plan: Plan, linears: Sequence[str]) -> dict[str, object]:
    if plan.only is not None:
        return _setting(plan.only)
    return {
        "method": MIXED,
        "parameters": {},
        "settings": [
            {**_setting(setting), "linears": [name for name in linears if plan.setting_for(name) == setting]}
            for setting in plan.settings
        ],
    }


def _setting(setting: Setting) -> dict[str, object]:
    parameters = {name: value for name, value in setting.read_values().items() if name != "method"}
    return {"method": setting.method, "parameters": parameters}


def _size(size: ModelSize) -> dict[str, object]:
    return {"bits_per_weight": size.bits_per_weight, "model_bytes": size.model_bytes, "size": encode(size)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
