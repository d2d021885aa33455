"""Write a quantized model as a directory that loads like any other.

Responsible for what is in it: dense weights `W_eff` in the model's own type, tokenizer, generation configuration, and
`praqtune.json`, which says how they came about. The model in memory is as it was afterwards. May assume that the
bench was laid out for the model; `storage.model_directory` makes the directory whole or absent.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from objectives.progress import Progress, silent
from objectives.quantization import LayerResult, model_size
from objectives.trial import Bench, quantized
from quant.plan import MIXED, Plan
from quant.setting import Setting
from quant.sizes import ModelSize
from storage.files import write_file
from storage.model_directory import new_directory, require_vacant

FORMAT = 2
RECORD = "praqtune.json"
VERSIONS_OF = ("praqtune", "torch", "transformers")


def write_quantized(bench: Bench, plan: Plan, directory: Path, progress: Progress = silent) -> dict[str, object]:
    """Write the model quantized by `plan` to `directory`, which appears whole or not at all.

    Args:
        bench: Model, roles and calibration.
        plan: How to quantize.
        directory: Must not exist, or be empty; missing parents are made.
        progress: Told how far each phase is.

    Returns:
        The contents of `praqtune.json`.

    Raises:
        InputError: If the plan does not suit the model or the text.
        QuantizationError: If a weight is not finite.
        StorageError: If something is at `directory` already, or the disk is full or refuses.
    """
    model = bench.model
    weights = sum(parameter.numel() * parameter.itemsize for parameter in model.module.parameters())
    require_vacant(directory, weights)
    with quantized(bench, plan, progress) as made:
        phase = f"writing {directory}"
        progress(phase, 0, 1)
        record = make_record(bench, plan, made.layers, weights="dense")
        with new_directory(directory) as place, configuration_kept(model.module):
            model.module.save_pretrained(place)
            model.tokenizer.save_pretrained(place)
            write_file(place / RECORD, json.dumps(record, indent=1).encode())
        progress(phase, 1, 1)
    return record


def read_record(directory: Path) -> dict[str, Any] | None:
    """What `write_quantized` wrote about a model directory; None for one that was made otherwise."""
    try:
        record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def make_record(bench: Bench, plan: Plan, layers: Sequence[LayerResult], weights: str) -> dict[str, object]:
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
        "calibration": {"source": text.source, "samples": len(text), "fingerprint": text.fingerprint()},
        "versions": {package: _version(package) for package in VERSIONS_OF},
        "layers": [asdict(layer) for layer in layers],
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
    reads = setting.definition.reads - {"method"}
    parameters = {name: value for name, value in setting.as_dict().items() if name in reads}
    return {"method": setting.method, "parameters": parameters}


def _size(size: ModelSize) -> dict[str, object]:
    return {"bits_per_weight": size.bits_per_weight, "model_bytes": size.model_bytes, "size": asdict(size)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@contextmanager
def configuration_kept(module: Any) -> Iterator[None]:
    """Undo what saving writes into the configuration of the model in memory: its type as text, its class."""
    before = dict(vars(module.config))
    try:
        yield
    finally:
        vars(module.config).clear()
        vars(module.config).update(before)
