"""The files of a local model directory: what is wrong with them, in one line each.

Responsible for what can be seen without loading anything: files that are no weights, are not all there, or are not
read at all. May assume nothing; a name that is no local path is the hub's business.
"""

import json
import re
from pathlib import Path
from typing import Any

from objectives.errors import InputError

POINTER = b"version https://git-lfs"
ADAPTER = "adapter_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
HEADER_LENGTH_BYTES = 8
LARGEST_HEADER = 100 * 2**20
LISTED = 3
COUNTS_OF_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""What configurations call how many experts a block has."""
EXPERT_TENSOR = re.compile(r"(.*\bexperts)\.(\d+)\.(.+)")
TYPES_OF_WEIGHTS = ("F64", "F32", "F16", "BF16")


def require_model_directory(name: str, path: Path) -> None:
    """Refuse a local model whose files cannot be those of a model; a name that is no path is let through.

    Raises:
        InputError: Naming the file and the remedy.
    """
    if path.is_file():
        raise InputError(
            f"model {name} is a file; give the directory that holds it with its config.json, {path.parent}"
        )
    if not path.is_dir():
        return
    if not (path / "config.json").is_file():
        alone = (path / ADAPTER).is_file()
        raise InputError(
            f"model {name} is a PEFT adapter without its base model; merge it into that and give the result"
            if alone
            else f"model {name} is a directory without config.json; give a model directory"
        )
    for file in sorted(path.glob("*")):
        if file.suffix in (".safetensors", ".json", ".model", ".bin") and _starts_as_pointer(file):
            raise InputError(
                f"{file} is a git-LFS pointer, not the file itself; run `git lfs pull` in {path}, or download it again"
            )
    for file in sorted(path.glob("*.safetensors")):
        _header(file)
    _require_shards(path)
    _require_weights(name, path)


def require_tokenizer_files(name: str, path: Path) -> None:
    """Refuse a local model without a tokenizer.

    Raises:
        InputError: Saying which files are missing.
    """
    # A tokenizer of the model's own code may need none of the usual files but its configuration.
    if path.is_dir() and not any((path / file).is_file() for file in TOKENIZER_FILES):
        raise InputError(
            f"model {name} has no tokenizer (tokenizer.json or tokenizer.model, and tokenizer_config.json); copy them "
            "from the model that it was made from"
        )


def ignored_files(path: Path) -> list[str]:
    """Say which files of a local model change nothing although they look as if they did."""
    if not (path / ADAPTER).is_file():
        return []
    return [f"{path / ADAPTER} is ignored: the base weights beside it are used; merge the adapter into them to use it"]


def require_experts(name: str, path: Path, config: Any) -> None:
    """Refuse a local mixture whose files have other experts than its configuration describes.

    Raises:
        InputError: Naming the tensor, which experts there are, and how many there should be.
    """
    counts = (getattr(config.get_text_config(), key, None) for key in COUNTS_OF_EXPERTS)
    count = next((count for count in counts if isinstance(count, int) and count > 0), None)
    numbers: dict[str, set[int]] = {}
    for file in sorted(path.glob("*.safetensors")) if count is not None else ():
        for key in _header(file):
            match = EXPERT_TENSOR.fullmatch(key)
            if match:
                numbers.setdefault(f"{match[1]}.*.{match[3]}", set()).add(int(match[2]))
    for key, present in sorted(numbers.items()):
        wrong = sorted(present ^ set(range(count or 0)))
        if wrong:
            verb = "lacks" if wrong[0] not in present else "has, beyond that,"
            listed = ", ".join(map(str, wrong[:LISTED]))
            raise InputError(
                f"model {name} should have {count} experts by its config.json and {verb} {len(wrong)} of {key} (first: "
                f"{listed}); get its files again, or the config.json that belongs to them"
            )


def _starts_as_pointer(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(POINTER)) == POINTER
    except OSError:
        return False


def coded_weights(path: Path) -> list[str]:
    """Name the weights of a local model that are stored in a type of codes: integers, or floats of 8 bits and fewer."""
    return [
        f"{key} is stored as {about['dtype']}"
        for file in sorted(path.glob("*.safetensors"))
        for key, about in _header(file).items()
        if key.endswith("weight") and about["dtype"] not in TYPES_OF_WEIGHTS
    ]


def _require_weights(name: str, path: Path) -> None:
    """Refuse a model whose weights are in files of other kinds."""
    if any(path.glob("*.safetensors*")):
        return
    if any(path.glob("*.bin")) or any(path.glob("*.pt*")):
        raise InputError(
            f"model {name} has pickled weights (.bin, .pt), which are not read, because reading them runs what is in "
            "them; save it with transformers once more, which writes safetensors"
        )
    kind = "GGUF instead of safetensors; give the model that it was made from" if any(path.glob("*.gguf")) else ""
    raise InputError(f"model {name} has {kind or 'no weights (model.safetensors); get them'}")


def _header(file: Path) -> dict[str, Any]:
    """Read what a safetensors file says of each tensor, and compare its size with that."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(HEADER_LENGTH_BYTES), "little")
            header = json.loads(opened.read(length)) if length <= LARGEST_HEADER else None
        tensors = {key: about for key, about in header.items() if key != "__metadata__"}  # type: ignore[union-attr]
        ends = [about["data_offsets"][1] for about in tensors.values() if about["dtype"]]
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}; check its permissions") from error
    except (ValueError, KeyError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise InputError(f"{file} is damaged or not all there: it has no safetensors header; get it again") from error
    described, size = HEADER_LENGTH_BYTES + length + max(ends, default=0), file.stat().st_size
    if size != described:
        raise InputError(
            f"{file} is damaged or not all there: {described} bytes by its header, {size} in the file; get it again"
        )
    return tensors


def _require_shards(path: Path) -> None:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        named = {str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{index} is damaged: it maps no weights to files; get it again") from error
    missing = sorted(file for file in named if not (path / file).is_file())
    if missing:
        raise InputError(
            f"model {path} lacks {len(missing)} of {len(named)} files of weights (first: {missing[0]}); get them"
        )
