"""A model card names what loads and serves these very weights, and a study where there is one."""

from dataclasses import replace
from pathlib import Path

import pytest

from hpo.deploy.model_card import SERVED_BY, model_card
from objectives.export import mlx
from objectives.export.formats import find_format
from objectives.export.reading import SPECIFICATION
from objectives.refinement_record import HeldBack, Refinement
from quant.plan import Plan
from quant.setting import Setting
from tests.hpo.verdict.test_recommendation import MANIFEST, made

RTN = Setting(method="rtn", group_size=64)
REFINEMENT = Refinement(
    source="c4",
    fingerprint="3" * 32,
    sequences=8,
    tokens=100,
    steps=1,
    rate=1e-3,
    halvings=0,
    kept_step=1,
    validation_sequences=2,
    looks=(HeldBack(step=0, kl=0.2), HeldBack(step=1, kl=0.1)),
)
BEFORE = "It measured the model before refinement."


@pytest.mark.parametrize(
    ("weights", "setting", "served"),
    [
        ("gptq", RTN, True),
        # vLLM loads GPTQ without zero points only, and has no kernel for groups of 48.
        ("gptq", replace(RTN, symmetric=False), False),
        ("awq", replace(RTN, symmetric=False), True),
        ("compressed-tensors", RTN, True),
        ("compressed-tensors", replace(RTN, group_size=48), False),
        ("gguf-q8", replace(RTN, group_size=32), True),
    ],
)
def test_a_card_names_no_server_that_does_not_load_the_weights(weights: str, setting: Setting, served: bool) -> None:
    """What holds them need not be what serves them; they are loaded by transformers all the same."""
    card = model_card(replace(MANIFEST, weights=weights), Plan.uniform(setting))
    assert (SERVED_BY[weights] in card) is served
    assert ("vllm serve" in card) is (served and weights != "gguf-q8")
    assert ("from_pretrained" in card) is (weights != "gguf-q8")


@pytest.mark.parametrize(
    ("weights", "library"),
    [("gguf", "gguf"), ("gguf-q8", "gguf"), ("mlx", "mlx"), ("awq", "transformers"), ("gptq", "transformers")],
)
def test_a_card_says_which_library_loads_the_files(weights: str, library: str) -> None:
    """The hub shows its snippet."""
    card = model_card(replace(MANIFEST, weights=weights), Plan.uniform(RTN))
    assert f"\nlibrary_name: {library}\n" in card


def test_mlx_unpacks_what_transformers_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof names both where MLX is installed, and the specification elsewhere."""
    monkeypatch.setattr("objectives.export.runtime.installed", lambda *_: False)
    assert find_format("mlx").reader() == SPECIFICATION
    monkeypatch.setattr("objectives.export.runtime.installed", lambda *_: True)
    for module in ("objectives.export.runtime", mlx.__name__):
        monkeypatch.setattr(f"{module}.versions_of", lambda *packages: " and ".join(f"{name} 1" for name in packages))
    assert find_format("mlx").reader() == "mlx 1 (unpacks) and transformers 1 (computes)"


def test_a_card_says_that_codes_were_equal() -> None:
    """Where they were compared, which manifests of before do not say."""
    sentence = (
        "All 21 tensors that were loaded there are equal, bit for bit, to those of the quantized model, the codes of"
    )
    assert MANIFEST.proof is not None
    proven = replace(MANIFEST, proof=replace(MANIFEST.proof, tensors=21, linears=14))
    assert f"\n{sentence} its 14 quantized Linears among them.\n" in model_card(proven, Plan.uniform(RTN))
    assert "bit for bit" not in model_card(MANIFEST, Plan.uniform(RTN))


def test_the_card_of_a_refined_model_refers_to_a_study_where_there_is_one(tmp_path: Path) -> None:
    """Its numbers are from before; a model that a person chose has none."""
    refined = replace(MANIFEST, refinement=REFINEMENT)
    study = made(tmp_path, -0.05, -1.0)
    assert study.recommendation is not None
    measured = study.recommendation.measured
    assert measured.setting is not None
    plan = Plan.uniform(measured.setting)
    assert BEFORE in model_card(refined, plan, study, measured)
    assert BEFORE not in model_card(MANIFEST, plan, study, measured)
    alone = model_card(refined, plan)
    assert "## Refined" in alone
    assert "study" not in alone.lower()
