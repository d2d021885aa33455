"""Load a model directory as whoever deploys it would: by transformers, by its runtime's package, or by specification.

Responsible for which of them reads a format in this environment, and for a model in memory. May assume that the
directory is complete.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from objectives.errors import RunError

TRANSFORMERS, GGUF, MLX_PACKAGE = "transformers", "gguf", "mlx-package"
GGUF_FILE = "model.gguf"
SPECIFICATION = "the format's specification"
MARK = ".scales"
"""What every format of `objectives.export.specification` has of a quantized Linear."""


def read_by_transformers(reader: str) -> bool:
    """Return whether transformers reads the files themselves, by whatever packages it has for them."""
    return reader in (TRANSFORMERS, GGUF)


def installed(*packages: str) -> bool:
    """Return whether all packages are installed."""
    try:
        return all(version(package) for package in packages)
    except PackageNotFoundError:
        return False


def versions_of(*packages: str) -> str:
    """Return names and versions of installed packages."""
    return " and ".join(f"{package} {version(package)}" for package in packages)


def load_directory(reader: str, directory: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """Return the model in a directory.

    Args:
        reader: `transformers`; `gguf`, whose files transformers reads by that package; `mlx-package` for the package
            mlx; or the format whose specification is followed.
        directory: Where it is.
        dtype: What it computes in.
        trust_remote_code: Run Python code that comes with it.

    Raises:
        RunError: If tensors are missing or not understood.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM

    if read_by_transformers(reader):
        file = {"gguf_file": GGUF_FILE} if reader == GGUF else {}
        made = auto.from_pretrained(
            directory, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True, **file
        )
    else:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            kind = type(auto.from_config(config, trust_remote_code=trust_remote_code))
        tensors = _dense(reader, directory)
        made = kind.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True)
    model, report = made
    # A weight that is not found is made up, and one that is not understood is left out, with a warning at most.
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if wrong:
        raise RunError(f"{len(wrong)} tensors are missing or not understood (first: {wrong[0]})")
    return model


def stored_linears(directory: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every quantized Linear of a directory with its tensors, by what their names end in, one at a time."""
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(directory.glob("*.safetensors"))]
        places = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        linears: dict[str, list[str]] = {}
        for name in places:
            module, _, part = name.rpartition(".")
            linears.setdefault(module, []).append(part)
        for module, parts in linears.items():
            if MARK.removeprefix(".") in parts:
                yield module, {part: places[f"{module}.{part}"].get_tensor(f"{module}.{part}") for part in parts}


def _dense(reader: str, directory: Path) -> dict[str, Tensor]:
    """Return all tensors, those of quantized Linears as the weights in the type of the others."""
    from objectives.export.specification import MLX, SPECIFICATIONS

    read, key = SPECIFICATIONS[MLX if reader == MLX_PACKAGE else reader]
    read = read_by_mlx if reader == MLX_PACKAGE else read
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    dtype = getattr(torch, config["dtype"])
    tensors: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(path)
    for module in [name.removesuffix(MARK) for name in tensors if name.endswith(MARK)]:
        own = [name for name in tensors if name.rpartition(".")[0] == module]
        parts = {name.rpartition(".")[2]: tensors.pop(name) for name in own}
        tensors[f"{module}.weight"] = read(parts, config[key]).to(dtype).contiguous()
        if "bias" in parts:
            tensors[f"{module}.bias"] = parts["bias"]
    return tensors


def read_by_mlx(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Return the weights `[O, I]`, float32, as MLX itself has them."""
    import mlx.core as mx
    import numpy as np

    weight = mx.array(tensors["weight"].view(torch.int32).numpy()).view(mx.uint32)
    scales, biases = (mx.array(tensors[name].float().numpy()) for name in ("scales", "biases"))
    return torch.from_numpy(np.array(mx.dequantize(weight, scales, biases, config["group_size"], config["bits"])))
