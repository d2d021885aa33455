"""What is wrong with the files of a model is one line before anything is loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from objectives.errors import InputError
from objectives.model.files import ignored_files, require_model_directory, require_tokenizer_files

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.ones(4), "b": torch.ones(3, 2)}, tmp_path / "model.safetensors")
    return tmp_path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        require_model_directory("mine", path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_whole_files_and_names_of_the_hub_are_let_through(model: Path) -> None:
    """Nothing is said of a complete directory, nor of what is no local path."""
    require_model_directory("mine", model)
    require_model_directory("org/name", Path("org/name"))
    require_tokenizer_files("org/name", Path("org/name"))


def test_a_file_is_no_model(model: Path) -> None:
    """The directory that is meant is named."""
    assert f"is a file; give the directory that holds it with its config.json, {model}" in refusal(
        model / "model.safetensors"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named(name: str, model: Path) -> None:
    """Whichever file was not fetched."""
    (model / name).write_text(POINTER)
    assert f"{name} is a git-LFS pointer, not the file itself; run `git lfs pull` in {model}" in refusal(model)


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_weights_that_are_not_all_there_are_named(kept: int, model: Path) -> None:
    """Cut off in the length, in the header or in the data."""
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path} is damaged or not all there" in refusal(model)


def test_missing_files_of_weights_are_counted(model: Path) -> None:
    """What the index names has to be there."""
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks 1 of 2 files of weights (first: model-2.safetensors)" in refusal(model)


def test_an_adapter_is_ignored_beside_weights_and_refused_alone(model: Path) -> None:
    """Whoever gives an adapter is told that it is not used."""
    assert ignored_files(model) == []
    (model / "adapter_config.json").write_text("{}")
    (note,) = ignored_files(model)
    assert note.startswith(f"{model}/adapter_config.json is ignored")
    (model / "config.json").unlink()
    assert "is a PEFT adapter without its base model; merge it" in refusal(model)


def test_a_missing_tokenizer_is_named(model: Path) -> None:
    """Which files would have to be there is said."""
    with pytest.raises(InputError, match=r"has no tokenizer \(tokenizer.json or tokenizer.model"):
        require_tokenizer_files("mine", model)
