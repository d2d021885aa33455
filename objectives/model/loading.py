"""Causal language models: load one that fits, say exactly which one it is, and put its weights back.

Responsible for `--model`, `--revision`, `--dtype`, `--device` and what can be wrong with them. May assume that the
hub's libraries honour HF_TOKEN and HF_HUB_OFFLINE themselves.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from objectives.bundled.text import MODEL_DIRECTORY
from objectives.errors import InputError
from objectives.model.files import (
    coded_weights,
    ignored_files,
    require_experts,
    require_model_directory,
    require_tokenizer_files,
)
from objectives.model.hub import hub_errors
from objectives.model.memory import available_bytes
from objectives.model.offloading import WORKING_BYTES, Room, load_streamed, require_room
from objectives.model.provenance import AlreadyQuantized, already_quantized
from objectives.model.weights import HeldWeights, Weights
from objectives.progress import Progress, silent
from quant.matmul import fast_dtype
from quant.scheme import SCALE_TYPES

BUNDLED = "bundled"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Names that say where a model came from, not what it computes.
# What transformers, or a model's own code, raises on values of a configuration that it does not check.
FAULTS_OF_VALUES = (ImportError, ArithmeticError, AttributeError, TypeError, LookupError)
NAMES_OF_SCALES = (
    "weight_scale",
    "weight_scale_inv",
    "input_scale",
    ".qweight",
    ".qzeros",
    "weight_packed",
    ".absmax",
    ".SCB",
)
IRRELEVANT_CONFIG = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation"}


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """Which model to load and how.

    Attributes:
        name: A directory, a hub name, or `bundled`.
        revision: Branch, tag or commit of a hub model.
        dtype: A name in `DTYPES`, or `auto`: the model's own type where the device is fast in it, float32 elsewhere.
        device: A torch device, or `auto`: the GPU where there is one, the CPU elsewhere.
        trust_remote_code: Run Python code that comes with the model.
        accept_quantized: Load a model that is already quantized, to measure it as it is.
        device_memory: Bytes that its weights may take on the device, and what becomes of them; None for what is
            available.
        offload: Directory for what is written of blocks that are not in memory; None for a place in the cache.
    """

    name: str = BUNDLED
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    accept_quantized: bool = False
    device_memory: int | None = None
    offload: str | None = None

    def __post_init__(self) -> None:
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype!r} is unknown; choose auto, {', '.join(DTYPES)}")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A loaded model.

    Attributes:
        name: As it was asked for.
        commit: The hub's commit; None for a directory.
        module: The `PreTrainedModel`, in evaluation mode, without gradients.
        tokenizer: Its tokenizer.
        device: Where it runs.
        fingerprint: 128 bits of its configuration and of every weight and buffer as loaded.
        weights: Where those of its decoder blocks are.
        file_dtype: The type its files have its weights in; None where there are no files.
        quantized: How it is already quantized; None in full precision.
        notes: What a person should know of its files.
    """

    name: str
    commit: str | None
    module: Any
    tokenizer: Any
    device: torch.device
    fingerprint: str
    weights: Weights = field(default_factory=HeldWeights)
    file_dtype: torch.dtype | None = None
    quantized: AlreadyQuantized | None = None
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """Return the type its weights are in."""
        return self.module.dtype  # type: ignore[no-any-return]

    @property
    def stored_dtype(self) -> torch.dtype:
        """Return the type that packed files hold it in: computing in float32 makes none of them wider."""
        return self.file_dtype if self.dtype == torch.float32 and self.file_dtype in SCALE_TYPES else self.dtype


def load_model(plan: ModelPlan, progress: Progress = silent, offload: Path | None = None) -> Model:
    """Load a model and its tokenizer; of one that is too large for the memory its blocks stay in files.

    Args:
        plan: Which model and how.
        progress: Told what is done.
        offload: For what is written of blocks that are not in memory, unless the plan says another; None for the
            system's place of temporary files.

    Raises:
        InputError: If it is absent, gated, without weights, of an unknown kind, already quantized, or will not fit.
    """
    path = str(MODEL_DIRECTORY) if plan.name == BUNDLED else plan.name
    device = _device(plan.device)
    offload = Path(plan.offload or offload or tempfile.gettempdir())
    common = {"revision": plan.revision, "trust_remote_code": plan.trust_remote_code}
    progress(f"loading {plan.name}", 0, 1)
    local = Path(path)
    require_model_directory(plan.name, local)
    with hub_errors(f"model {plan.name}", *FAULTS_OF_VALUES):
        config = AutoConfig.from_pretrained(path, **common)
    quantized = already_quantized(config, local)
    if quantized is not None:
        _require_measurable(plan, quantized)
    require_experts(plan.name, local, config)
    require_tokenizer_files(plan.name, local)
    with hub_errors(f"the tokenizer of model {plan.name}", ImportError):
        tokenizer = AutoTokenizer.from_pretrained(path, **common)
    how = f", which is {quantized}," if quantized else ""
    with hub_errors(f"model {plan.name}{how}", *FAULTS_OF_VALUES):
        file_dtype, dtype = config.dtype, _dtype(plan.dtype, config, device)
        skeleton = _skeleton(plan, config)
        room = _room(plan, skeleton, dtype, device)
        if room is not None and quantized is not None:
            raise InputError(
                f"model {plan.name} is {quantized} and does not fit into the memory of {device}, and only models in "
                "full precision can be read block by block; use another --device"
            )
        # Weights that are absent or of another shape are made up by the library; asked for, it says which.
        ways: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "ignore_mismatched_sizes": True, **common}
        weights: Weights = HeldWeights()
        if room is None:
            loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **ways)
            module, report = loaded
        else:
            module, report, weights = load_streamed(path, plan.name, room, skeleton, device, offload, ways)
    _require_complete(plan, report)
    if quantized is None:
        _require_weights_of_numbers(plan, report, local)
    module = module.to(device).eval().requires_grad_(False) if room is None else module
    progress(f"reading the weights of {plan.name}", 0, 1)
    return Model(
        name=plan.name,
        commit=getattr(config, "_commit_hash", None),
        module=module,
        tokenizer=tokenizer,
        device=device,
        fingerprint=_fingerprint(module, weights),
        weights=weights,
        file_dtype=file_dtype,
        quantized=quantized,
        notes=(*ignored_files(local), *([] if room is None else [str(room)])),
    )


def _require_measurable(plan: ModelPlan, quantized: AlreadyQuantized) -> None:
    if not quantized.supported:
        raise InputError(
            f"model {plan.name} is {quantized}, which the installed transformers does not know and would ignore; "
            f"{quantized.remedy}"
        )
    if not plan.accept_quantized:
        raise InputError(
            f"model {plan.name} is {quantized}, and quantizing it again would add a second loss; {quantized.remedy}, "
            "or measure it as it is with `evaluate` without a method, or with `compare --models`"
        )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(_present() if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used ({reason}); choose auto, cpu, cuda or cuda:N") from error
    return device


def _present() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(name: str, config: Any, device: torch.device) -> torch.dtype:
    if name != "auto":
        return DTYPES[name]
    own = config.dtype if config.dtype in DTYPES.values() else torch.float32
    # A GPU is fast in every type; a processor only in those its matrix units know.
    return own if device.type != "cpu" or own == fast_dtype("cpu") else torch.float32


def _skeleton(plan: ModelPlan, config: Any) -> nn.Module:
    """Return the model without data."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call, no-any-return]
            config, trust_remote_code=plan.trust_remote_code
        )


def _room(plan: ModelPlan, skeleton: nn.Module, dtype: torch.dtype, device: torch.device) -> Room | None:
    if plan.device_memory is not None:
        return require_room(plan.name, skeleton, dtype, device, plan.device_memory)
    given = available_bytes(device) - WORKING_BYTES
    return require_room(plan.name, skeleton, dtype, device, given, spare=WORKING_BYTES)


def _require_complete(plan: ModelPlan, report: Mapping[str, Any]) -> None:
    lacking = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if lacking:
        raise InputError(
            f"model {plan.name} lacks {len(lacking)} weights that its config.json describes, or has them in another "
            f"shape (first: {lacking[0]}); get its files again"
        )


def _require_weights_of_numbers(plan: ModelPlan, report: Mapping[str, Any], path: Path) -> None:
    """Refuse codes that nothing says are codes: their scales are left over, or they are stored as integers."""
    scales = sorted(name for name in report["unexpected_keys"] if name.endswith(NAMES_OF_SCALES))
    codes = [*scales, *coded_weights(path)]
    if codes:
        raise InputError(
            f"model {plan.name} is quantized, although its config.json does not say so ({codes[0]}), and its codes "
            "would be taken for weights; give the original"
        )


def _fingerprint(module: nn.Module, weights: Weights) -> str:
    config = {k: v for k, v in module.config.to_dict().items() if k not in IRRELEVANT_CONFIG}  # type: ignore[operator, union-attr]
    digest = xxhash.xxh3_128(json.dumps(config, sort_keys=True, default=str).encode())
    for name, read in weights.state(module):
        tensor: Any = read()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return str(digest.hexdigest())
