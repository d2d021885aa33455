"""Models that are already quantized are told by what their configuration, our record and their card say."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from objectives.errors import InputError
from objectives.model.loading import ModelPlan, load_model
from objectives.model.provenance import FORMAT, RECORD, ModelOrigin, Provenance, already_quantized
from storage.typed_json import encode
from tests.objectives import tiny


def config(**said: Any) -> Any:
    return SimpleNamespace(quantization_config=said)


def test_full_precision_is_not_already_quantized(tmp_path: Path) -> None:
    """Neither a configuration without a word nor one that says nothing is quantized."""
    assert already_quantized(SimpleNamespace(), tmp_path) is None
    assert already_quantized(SimpleNamespace(quantization_config=None), tmp_path) is None


@pytest.mark.parametrize(
    ("said", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, 4 + 16 / 128),
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}, 4 + 20 / 64),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"weights": {"num_bits": 4, "group_size": 32, "symmetric": False}}},
            },
            4 + 20 / 32,
        ),
        ({"quant_method": "quanto"}, None),
    ],
)
def test_bits_are_those_of_the_configuration(said: dict[str, Any], bits: float | None, tmp_path: Path) -> None:
    """Bits, and what scales and zero points add to them, where the configuration says so."""
    found = already_quantized(config(**said), tmp_path)
    assert found is not None
    assert found.supported
    assert found.bits == bits


@pytest.mark.parametrize(
    ("file", "said", "expected"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128}, "by quantize_config.json, 4.125 bits per weight"),
        ("quant_config.json", {"quant_method": "awq", "w_bit": 4}, "awq by quant_config.json, 4.000 bits per weight"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}, "FP8 by hf_quant_config.json"),
        (None, {"quant_method": "compressed-tensors"}, "compressed-tensors by compression_config"),
    ],
)
def test_what_is_said_where_transformers_does_not_look_is_heard(
    file: str | None, said: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    """Codes would be taken for weights otherwise."""
    if file is not None:
        (tmp_path / file).write_text(json.dumps(said))
    found = already_quantized(SimpleNamespace(compression_config=None if file else said), tmp_path)
    assert found is not None
    assert str(found) == f"already quantized ({expected})"
    assert not found.supported


def test_the_text_part_of_a_configuration_is_asked_too(tmp_path: Path) -> None:
    """Models of images and text say there what their text part is."""
    whole = SimpleNamespace(get_text_config=lambda: config(quant_method="gptq", bits=4))
    found = already_quantized(whole, tmp_path)
    assert found is not None
    assert str(found) == "already quantized (gptq, 4.000 bits per weight)"


def test_the_original_is_named_where_a_card_or_our_record_does(tmp_path: Path) -> None:
    """What a model was made from stands in its card or in the record."""
    (tmp_path / "README.md").write_text("---\nlicense: mit\nbase_model:\n- org/original\n---\n")
    found = already_quantized(config(quant_method="gptq", bits=4), tmp_path)
    assert found is not None
    assert found.original == "org/original"
    provenance = Provenance(
        weights="dense",
        method="gw-awq",
        parameters={},
        bits_per_weight=4.5,
        model_bytes=1000,
        model=ModelOrigin(name="mine", commit=None, dtype="float32", stored_as="float32", fingerprint=""),
    )
    (tmp_path / RECORD).write_text(json.dumps({"format": FORMAT, **encode(provenance)}))
    found = already_quantized(SimpleNamespace(), tmp_path)
    assert found is not None
    assert (found.original, found.bits) == ("mine", 4.5)
    assert str(found) == "already quantized (dense by praqtune: gw-awq, 4.500 bits per weight)"


@pytest.mark.parametrize(
    ("said", "accepted", "expected"),
    [
        ({"quant_method": "gptq", "bits": 4}, False, ["is already quantized (gptq, 4.000 bits", "give the original"]),
        ({"quant_method": "gptq", "bits": 4}, True, ["which is already quantized (gptq", "optimum"]),
        ({"quant_method": "made-up"}, True, ["(made-up), which the installed transformers does not know"]),
    ],
)
def test_a_quantized_model_is_refused_in_one_line(
    said: dict[str, Any], accepted: bool, expected: list[str], tmp_path: Path
) -> None:
    """With what it is; one that may be measured needs what loads it, and an unknown method is never ignored."""
    made = tiny.complete()
    made.module.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": said}))
    with pytest.raises(InputError) as caught:
        load_model(ModelPlan(name=str(tmp_path), accept_quantized=accepted))
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in expected)
