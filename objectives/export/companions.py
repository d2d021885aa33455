"""What a model directory has beside its weights: processors, templates, licences.

Responsible for copying everything that saving the model and its tokenizer does not write. May assume that the
directory that is being filled has those already.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from transformers.utils.hub import cached_file

from objectives.bundled.text import MODEL_DIRECTORY
from objectives.model.loading import BUNDLED, Model
from objectives.model.provenance import CARD, RECORD

# Of a model of the hub nothing but these is fetched.
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "LICENSE",
)
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt", ".index.json")
# What would say something of the original that is not true of what is written.
OTHERS = {CARD, RECORD, "config.json", "adapter_config.json", "quantize_config.json"}


def copy_companions(model: Model, place: Path) -> None:
    """Copy what stands beside the weights of a model into `place`; what is there already stays.

    Raises:
        OSError: If the disk is full or refuses.
    """
    for file in _files(model):
        if not (place / file.name).exists():
            shutil.copyfile(file, place / file.name)


def _files(model: Model) -> Iterator[Path]:
    directory = MODEL_DIRECTORY if model.name == BUNDLED else Path(model.name)
    if directory.is_dir():
        for file in sorted(directory.iterdir()):
            kept = file.name not in OTHERS and not file.name.startswith(".") and not file.name.endswith(WEIGHTS)
            if file.is_file() and kept:
                yield file
        return
    # Only a model that came from the hub has a commit.
    for name in PROCESSOR_FILES if model.commit is not None else ():
        cached = cached_file(
            model.name, name, revision=model.commit, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False, _raise_exceptions_for_gated_repo=False,
        )  # fmt: skip
        if cached is not None:
            yield Path(cached)
