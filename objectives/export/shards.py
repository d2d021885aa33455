"""Save a model whose blocks are not in memory, a file for each of them, as transformers saves it whole.

Responsible for names and files alone: the names are those of the files that it was loaded from. May assume a model that
`objectives.model.offloading` loaded; holds one block.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from objectives.export.tensors import configuration_kept
from objectives.model.loading import Model
from objectives.model.roles import Block
from storage.files import disk_errors, write_file

INDEX = "model.safetensors.index.json"


def save_in_shards(model: Model, blocks: Sequence[Block], place: Path) -> None:
    """Write configuration and weights, as they are now, to a directory.

    Raises:
        StorageError: If the disk is full or refuses.
    """
    module = model.module
    with configuration_kept(module):
        module.save_pretrained(place, state_dict={})
    for empty in place.glob("*.safetensors*"):
        empty.unlink()
    shards = _by_block(model, blocks)
    places: dict[str, str] = {}
    size = 0
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = revert_weight_conversion(module, {key: read().cpu() for key, read in shard.items()})
        with disk_errors(place / name):
            safetensors.torch.save_file(
                {key: tensor.clone().contiguous() for key, tensor in tensors.items()}, place / name, {"format": "pt"}
            )
        places |= dict.fromkeys(tensors, name)
        size += sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    write_file(place / INDEX, (json.dumps(index, indent=2) + "\n").encode())


def _by_block(model: Model, blocks: Sequence[Block]) -> list[dict[str, Callable[[], Tensor]]]:
    """Return what reads each tensor, in a part for each block and one for the rest; of tied tensors one."""
    tied = getattr(model.module, "all_tied_weights_keys", None) or {}
    owners = {f"{block.name}.": block.index for block in blocks}
    parts: dict[int, dict[str, Callable[[], Tensor]]] = {}
    for name, read in model.weights.state(model.module):
        if name not in tied:
            owner = next((index for prefix, index in owners.items() if name.startswith(prefix)), len(blocks))
            parts.setdefault(owner, {})[name] = read
    return list(parts.values())
