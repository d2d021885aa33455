"""The bundled text keeps its split, and the bundled model is the trained one that its card describes."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from objectives.bundled.text import MODEL_DIRECTORY, held_out, is_held_out, training_documents
from objectives.evaluation import BenchPlan, LaidOut, evaluate, load_bench
from objectives.model.loading import ModelPlan
from objectives.paired import paired_difference
from objectives.progress import silent
from objectives.text.sequences import TextPlan
from quant.plan import Plan
from quant.setting import Setting
from storage.paths import Paths
from training.evaluation import bits_per_byte

FAMILIES = ("docstrings", "topics")
LONGEST_SHARED_RUN = 12


@cache
def card() -> dict[str, Any]:
    """The front matter of the model card."""
    _, front, _ = (MODEL_DIRECTORY / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front)


@cache
def documents(family: str) -> tuple[str, ...]:
    return tuple(held_out(family))


@cache
def training_text() -> tuple[str, ...]:
    return tuple(training_documents())


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL_DIRECTORY, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL_DIRECTORY)


@pytest.mark.parametrize(
    ("family", "name", "held"),
    [
        ("docstrings", "asyncio.events", True),
        ("docstrings", "asyncio.tasks", True),
        ("docstrings", "tkinter", False),
        ("topics", "compound", True),
    ],
)
def test_the_split_of_a_name_never_changes(family: str, name: str, held: bool) -> None:
    """Names stay on their side of the split whatever the Python version."""
    assert is_held_out(family, name) is held


def test_a_module_and_its_accelerated_twin_are_on_the_same_side() -> None:
    """Text that moved from `datetime` to `_pydatetime` does not cross the split."""
    for name in ("datetime", "decimal", "io", "collections_abc"):
        assert is_held_out("docstrings", name) == is_held_out("docstrings", f"_py{name}")


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_text_is_large_enough_and_in_a_fixed_order(family: str) -> None:
    """There is text for calibration, tuning and confirmation, and asking twice gives the same."""
    texts = held_out(family)
    assert texts == list(documents(family))
    assert len(texts) == len(set(texts))
    assert sum(map(len, texts)) > {"docstrings": 500_000, "topics": 150_000}[family]


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    """The error lists what may be asked for."""
    with pytest.raises(ValueError, match="docstrings, topics"):
        held_out("c4")


def test_a_package_that_is_not_installed_is_refused_by_name() -> None:
    """Training text is never silently smaller than asked for."""
    with pytest.raises(FileNotFoundError, match="no_such_package"):
        training_documents(["no_such_package"])


@pytest.mark.slow
def test_training_text_shares_no_run_of_words_with_held_out_text() -> None:
    """No 12 consecutive words of any held-out document occur in training text."""
    held = " \n ".join(text for family in FAMILIES for text in documents(family))
    forbidden = set(_runs(held))
    assert len(training_text()) > 100
    repeated = [run for text in training_text() for run in _runs(text) if run in forbidden]
    assert repeated == []


@pytest.mark.slow
def test_no_held_out_document_is_a_training_document() -> None:
    """The split is disjoint by document."""
    assert set(training_text()).isdisjoint({text for family in FAMILIES for text in documents(family)})


def _runs(text: str) -> list[str]:
    """Every run of 12 words, written independently of the code under test."""
    words = re.sub(r"[^\w]+", " ", text.casefold()).split()
    return [" ".join(words[i : i + LONGEST_SHARED_RUN]) for i in range(len(words) - LONGEST_SHARED_RUN + 1)]


def test_the_weights_are_those_of_the_card() -> None:
    """The checksum in the card is the checksum of the committed weights."""
    weights = (MODEL_DIRECTORY / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == card()["model_sha256"]
    assert len(weights) <= 16 * 2**20


def test_the_training_log_ends_where_the_card_says() -> None:
    """The committed log belongs to the committed weights, and its loss fell."""
    lines = (MODEL_DIRECTORY / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [entry for entry in map(json.loads, lines) if entry["event"] == "train"]
    assert any(entry["tokens"] == card()["training_tokens"] for entry in steps)
    assert steps[-1]["loss"] < steps[0]["loss"] / 2


def test_every_group_size_suits_the_model(model: Any) -> None:
    """All Linears of the blocks read a multiple of 256 inputs, and all weights are finite."""
    linears = [module for module in model.model.layers.modules() if isinstance(module, torch.nn.Linear)]
    assert linears
    assert all(linear.in_features % 256 == 0 for linear in linears)
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())


def test_the_tokenizer_adds_nothing_and_loses_nothing(tokenizer: Any) -> None:
    """By default no special token is added, and decoding gives the text back."""
    text = "def f(x):\n    '''Größe: 3 × 4'''\n\treturn x  # \u2713\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.bos_token_id not in ids
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"


@pytest.mark.slow
def test_greedy_generation_gives_words_that_python_documentation_uses(model: Any, tokenizer: Any) -> None:
    """A continuation consists mostly of words, most of which occur in training text."""
    inputs = tokenizer("Return the number of", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    words = re.findall(r"[a-z]{2,}", tokenizer.decode(output[0]).lower())
    # Of the packages it also learned from, numpy alone: reading them all takes half a minute.
    documented = set(re.findall(r"[a-z]{2,}", " ".join(training_documents(["numpy"])).lower()))
    assert len(words) >= 15
    assert sum(word in documented for word in words) >= 0.9 * len(words)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_card_keeps_the_quality_bar(family: str) -> None:
    """At most 1.9 bits per held-out byte, and fewer than xz needs after the training text."""
    figures = card()["held_out"][family]
    assert figures["bits_per_byte"] <= 1.9
    assert figures["bits_per_byte"] < figures["xz_bits_per_byte"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_bits_per_byte_of_the_first_documents_agree_with_the_card(family: str, model: Any, tokenizer: Any) -> None:
    """The model predicts held-out text as well as its card says."""
    figures = card()["held_out"][family]
    first = documents(family)[: figures["first_documents"]]
    measured = bits_per_byte(model, tokenizer, first)
    assert measured == pytest.approx(figures["first_documents_bits_per_byte"], rel=_tolerance(family))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_bits_per_byte_of_all_held_out_text_agree_with_the_card(family: str, model: Any, tokenizer: Any) -> None:
    """The whole held-out set gives the card's number."""
    expected = card()["held_out"][family]["bits_per_byte"]
    assert bits_per_byte(model, tokenizer, documents(family)) == pytest.approx(expected, rel=_tolerance(family))


@pytest.mark.slow
def test_the_model_is_good_enough_to_tell_settings_apart(tmp_path: Path) -> None:
    """On 256 sequences of 256 tokens nearest rounding costs measurably, and settings of one group size differ."""
    tuning = TextPlan(source="bundled:docstrings", part="tuning", count=256, length=256)
    calibration = replace(tuning, part="calibration", count=64)
    plan = BenchPlan(model=ModelPlan(), calibration=calibration, data=(tuning,))
    bench, (text,) = load_bench(plan, Paths(tmp_path))
    settings = [Setting(beta=beta, tau=tau, n_calib=64) for beta, tau in ((0.3, 2.5), (1.0, 0.1), (0.0, 5.0))]
    laid_out = LaidOut(bench=bench, data=[text], agreement=None)
    plans = [Plan.uniform(setting) for setting in (Setting(method="rtn", n_calib=64), *settings)]
    _, rounded, *tuned = evaluate(laid_out, plans, silent)
    assert rounded.difference is not None
    assert rounded.difference.low > 0
    pairs = [paired_difference(a.score, b.score) for a, b in combinations(tuned, 2)]
    assert any(pair.low > 0 or pair.high < 0 for pair in pairs), pairs


def _tolerance(family: str) -> float:
    """2 % on the card's own text; other Python versions hold other editions of the documents."""
    text = "\n\n".join(documents(family)).encode()
    return 0.02 if hashlib.sha256(text).hexdigest() == card()["held_out"][family]["sha256"] else 0.15


def test_nothing_of_the_text_is_committed_beside_the_model() -> None:
    """The package holds code and the model only: prose is read from the installation."""
    suffixes = {path.suffix for path in Path(MODEL_DIRECTORY).parent.rglob("*") if path.is_file()}
    assert suffixes <= {".py", ".pyc", ".json", ".jsonl", ".safetensors", ".md"}
