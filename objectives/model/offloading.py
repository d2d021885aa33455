"""Load a model whose weights are too many for the memory: everything but its decoder blocks, and where those are.

Responsible for what fits and stays, and for the way from names of parameters to bytes of files. transformers says it:
what it renames is read where it lies, and what it converts, such as experts that become one tensor, it writes once
more. May assume a configuration of a model in full precision.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from torch import nn
from transformers import AutoModelForCausalLM

from objectives.errors import InputError
from objectives.model.finding import decoder_layers, shared_parameters
from objectives.model.streaming import StreamedWeights
from storage.files import disk_errors, require_free
from storage.tensor_files import SCRATCH_REMEDY, StoredTensor, stored_tensors

WORKING_BYTES = 512 * 2**20
"""Beyond the weights: activations of a batch, a block in float32, its statistics."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What of a model stays in memory, and what does not.

    Attributes:
        blocks: Names of its decoder blocks.
        kept: Those that stay.
        outside: Bytes of everything else.
        block: Of the largest block.
        total: Of the whole model.
        given: That weights may take.
    """

    blocks: tuple[str, ...]
    kept: frozenset[str]
    outside: int
    block: int
    total: int
    given: int

    def __str__(self) -> str:
        count, kept = len(self.blocks), len(self.kept)
        sentence = "all blocks stay in memory, and are put back from their files instead of a copy"
        if kept < count:
            sentence = f"{count - kept} of {count} blocks are read from their files whenever they are used"
        usual = 2 * self.total / 1e9
        return f"{sentence}: weights take {self.resident / 1e9:.2f} GB instead of {usual:.2f}, which do not fit"

    @property
    def resident(self) -> int:
        """Return how many bytes the weights take that are in memory at the same time, at most."""
        streamed = 0 if len(self.kept) == len(self.blocks) else 2
        return self.outside + (streamed + len(self.kept)) * self.block


def require_room(
    name: str, skeleton: nn.Module, dtype: torch.dtype, device: torch.device, given: int, spare: int = 0
) -> Room | None:
    """Return what of a model fits into `given` bytes for its weights; None where all of it does, and a copy.

    Blocks stay in memory only where they leave `spare` of these bytes.

    Raises:
        InputError: If not even one block does.
    """
    total = _bytes(skeleton, dtype)
    if 2 * total <= given:
        return None
    prefix, layers = decoder_layers(skeleton)
    sizes = [_bytes(layer, dtype) for layer in layers]
    outside, block = total - sum(sizes), max(sizes)
    least = outside + 2 * block
    if least > given:
        raise InputError(
            f"model {name} needs at least {least / 1e9:.3f} GB for weights on {device} in {dtype} (embeddings, the "
            f"head and a decoder block twice), and {max(given, 0) / 1e9:.3f} GB are available beside "
            f"{WORKING_BYTES / 1e9:.1f} GB to work in; use another --device or a 16-bit --dtype"
        )
    names = tuple(f"{prefix}.{index}" for index in range(len(layers)))
    # Allocators hold on to what blocks had that came and went.
    kept = names[: max(0, given - least - spare) // block]
    return Room(blocks=names, kept=frozenset(kept), outside=outside, block=block, total=total, given=given)


def load_streamed(
    path: str, name: str, room: Room, skeleton: nn.Module, device: torch.device, offload: Path, how: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any], StreamedWeights]:
    """Load what stays, and find where the rest is.

    Args:
        path: As transformers is given it.
        name: As the model was asked for.
        room: What stays.
        skeleton: The model without data.
        device: Where it runs.
        offload: A directory for what is written.
        how: What else transformers is given.

    Returns:
        The model, what transformers says of its files, and its weights.

    Raises:
        InputError: If it cannot be streamed.
        StorageError: If the disk is full or refuses.
    """
    _require_own_parameters(name, skeleton, room)
    with disk_errors(offload, SCRATCH_REMEDY):
        offload.mkdir(parents=True, exist_ok=True)
    # It warns of what is wanted here.
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    require_free(offload, room.total - room.outside, SCRATCH_REMEDY)
    # Files that are open stay where they are when their folder is gone.
    with tempfile.TemporaryDirectory(dir=offload) as folder:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, device_map=_places(skeleton, room, device), offload_folder=folder, output_loading_info=True, **how
        )
        module, report = loaded
        originals = _originals(module)
    with _named_where_absent(name):
        remove_hook_from_submodules(module)
    for owner in module.modules():
        # What is left of the hooks.
        vars(owner).pop("forward", None)
        vars(owner).pop("hf_device_map", None)
    absent = {key: tensor for key, tensor in module.state_dict().items() if tensor.is_meta}
    wrong = sorted(
        key for key, tensor in absent.items() if key not in originals or originals[key].shape != tuple(tensor.shape)
    )
    report = {**report, "missing_keys": {*report["missing_keys"], *wrong}}
    for owner in module.modules():
        for leaf, buffer in owner._buffers.items():
            owner._buffers[leaf] = buffer if buffer is None else buffer.to(device)
    module = module.eval().requires_grad_(False)
    if wrong:
        return module, report, StreamedWeights(module, [], {}, device, offload)
    present = {key: originals[key] for key in absent}
    return module, report, StreamedWeights(module, room.blocks, present, device, offload, room.kept)


@contextmanager
def _named_where_absent(name: str) -> Iterator[None]:
    """Say of weights that no file has what is said of them in memory, and not what the library makes of it."""
    try:
        yield
    except ValueError as error:
        if "on the meta device" not in str(error):
            raise
        raise InputError(
            f"model {name} lacks weights that its config.json describes, or has them in another form; get its files "
            "again"
        ) from error


def _bytes(module: nn.Module, dtype: torch.dtype) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) * dtype.itemsize


def _require_own_parameters(name: str, skeleton: nn.Module, room: Room) -> None:
    shared = shared_parameters(skeleton)
    for block in room.blocks:
        for key, parameter in skeleton.get_submodule(block).named_parameters():
            if id(parameter) in shared:
                raise InputError(
                    f"model {name} is too large for the memory and has {block}.{key} in several places, so that its "
                    "blocks cannot be brought one by one; use another --device or a 16-bit --dtype"
                )


def _places(skeleton: nn.Module, room: Room, device: torch.device) -> dict[str, str]:
    """Say where every part of a model is: its decoder blocks on the disk."""
    prefix = room.blocks[0].rpartition(".")[0]
    steps = prefix.split(".")
    places = {prefix: "disk"}
    for depth, step in enumerate(steps):
        head = ".".join(steps[:depth])
        owner = skeleton.get_submodule(head)
        own = [*owner.named_children(), *owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
        places |= {f"{head}.{name}" if head else name: str(device) for name, _ in own if name != step}
    return places


def _originals(module: nn.Module) -> dict[str, StoredTensor]:
    """Return where transformers found, or put, what is not in memory, by the name of the parameter."""
    maps = (getattr(getattr(owner, "_hf_hook", None), "weights_map", None) for owner in module.modules())
    index: Mapping[str, Any] = next((weights_map.dataset.index for weights_map in maps if weights_map is not None), {})
    files: dict[str, dict[str, StoredTensor]] = {}
    originals = {}
    for name, where in index.items():
        path = where["safetensors_file"]
        if path not in files:
            files[path] = stored_tensors(Path(path))
        if where["weight_name"] in files[path]:
            originals[name] = files[path][where["weight_name"]]
    return originals
