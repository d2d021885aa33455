"""`praqtune.json`: what is written is what is read, what is damaged is refused, and each field is documented."""

import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from objectives.errors import InputError
from objectives.export.manifest import (
    CalibrationOrigin,
    LinearsSetting,
    Manifest,
    ProvenScore,
    write_manifest,
)
from objectives.model.provenance import RECORD, ModelOrigin, Provenance, already_quantized, read_provenance
from objectives.quantized_blocks import LayerResult
from objectives.refinement_record import Change, CodeMoves, Gain, HeldBack, Refinement, RefinementTrial
from quant.sizes import ModelSize
from storage.typed_json import decode, encode
from tests.documents import documented_fields

CHANGE = Change(before=0.2, after=0.1, difference=-0.1, low=None, high=None)
MANIFEST = Manifest(
    weights="compressed-tensors",
    method="mixed",
    parameters={},
    settings=(LinearsSetting(method="rtn", parameters={"group_size": 64, "symmetric": True}, linears=("a", "b")),),
    bits_per_weight=4.25,
    model_bytes=1000,
    size=ModelSize(weights=8, codes=4.0, scales=0.25, rest=0.0, outside=16.0),
    model=ModelOrigin(name="org/name", commit=None, dtype="float32", stored_as="bfloat16", fingerprint="1" * 32),
    part=None,
    calibration=CalibrationOrigin(source="c4", samples=8, fingerprint="2" * 32),
    versions={"torch": "2"},
    layers=(LayerResult(name="a", depth=0, role="q", alpha=0.5, nearest_loss=2.0, loss=1.0, final_loss=0.5),),
    stored_bits_per_weight=4.26,
    proof=ProvenScore(source="c4", sequences=8, measured=33.0, unfolded=33.01, packed=33.0, reader="transformers"),
    refinement=Refinement(
        source="c4",
        fingerprint="3" * 32,
        sequences=16,
        tokens=8192,
        steps=4,
        rate=1e-3,
        halvings=0,
        kept_step=4,
        validation_sequences=4,
        looks=(HeldBack(step=0, kl=0.2), HeldBack(step=4, kl=0.1)),
        moves=CodeMoves(steps=50, sequences=24, share=0.01, before=0.25, after=0.2),
        gains=(Gain(source="c4", part="confirmation", sequences=8, tokens=4088, kl=CHANGE, nll=CHANGE, flips=CHANGE),),
    ),
)
TABLES: dict[str, type] = {
    "manifest": Manifest,
    "setting of some Linears": LinearsSetting,
    "size": ModelSize,
    "quantized model": ModelOrigin,
    "calibration": CalibrationOrigin,
    "layer": LayerResult,
    "proof": ProvenScore,
    "refinement": Refinement,
    "refinement that was tried": RefinementTrial,
    "moves of codes": CodeMoves,
    "look": HeldBack,
    "gain": Gain,
    "change of a measure": Change,
}


def stored(directory: Path) -> Any:
    return json.loads((directory / RECORD).read_text())


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """The whole manifest, and the part of it that says what a model is."""
    write_manifest(tmp_path, MANIFEST)
    assert decode(Manifest, stored(tmp_path), RECORD) == MANIFEST
    shared = {field.name: getattr(MANIFEST, field.name) for field in fields(Provenance)}
    assert read_provenance(tmp_path) == Provenance(**shared)


def test_a_directory_without_a_manifest_of_this_version_says_nothing(tmp_path: Path) -> None:
    """Nor does one whose file is no JSON: others may have files of that name."""
    assert read_provenance(tmp_path) is None
    for text in ("{", "[]", json.dumps({**encode(MANIFEST), "format": 1})):
        (tmp_path / RECORD).write_text(text)
        assert read_provenance(tmp_path) is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [({"bits_per_weight": "four"}, r"bits_per_weight is 'four', not a number"), ({"model": {}}, r"model lacks name")],
)
def test_a_damaged_manifest_is_refused_in_one_line(damage: dict[str, Any], said: str, tmp_path: Path) -> None:
    """With the field: a model of unknown origin is not quantized once more."""
    (tmp_path / RECORD).write_text(json.dumps({**encode(MANIFEST), **damage}))
    with pytest.raises(InputError, match=said) as caught:
        already_quantized(SimpleNamespace(), tmp_path)
    assert "\n" not in str(caught.value)


def test_every_field_is_documented_and_nothing_else() -> None:
    """In their order."""
    assert documented_fields("deploy.md") == {
        name: [field.name for field in fields(kind)] for name, kind in TABLES.items()
    }
