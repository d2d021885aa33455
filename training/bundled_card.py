"""Responsible for turning trained weights into the model directory that ships, with its model card.

Files are written beside their final names and renamed, so that a reader of the directory sees the old
model or the new one. Everything in the card is computed from the files that were written.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from objectives.bundled.text import held_out
from training.evaluation import bits_per_byte

FAMILIES: tuple[Literal["docstrings", "topics"], ...] = ("docstrings", "topics")
SUBSET_DOCUMENTS = 6
"""The card also gives bits per byte of the first few documents, which a test can recompute quickly."""
PROMPT = "Return True if the"


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What the training run knows and the card tells."""

    packages: Mapping[str, str]
    core_tokens: int
    core_share: float
    extra_tokens: int
    tokens_seen: int
    tokens_planned: int
    minutes: float
    cpu_minutes: float
    seed: int
    xz_bits_per_byte: Mapping[str, float]


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, log: Path, target: Path, facts: TrainingFacts
) -> None:
    """Write weights (bfloat16), tokenizer, log and card to `target`.

    Args:
        model: The trained model, in any floating type.
        tokenizer: Its tokenizer.
        log: The training log to copy.
        target: Directory to write; files of an earlier export are replaced.
        facts: What the card tells about training.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".model-") as name:
        temporary = Path(name)
        model.bfloat16().save_pretrained(temporary)
        tokenizer.save_pretrained(str(temporary))
        _name_portable_tokenizer_class(temporary / "tokenizer_config.json")
        separator = tokenizer.bos_token_id
        generation = {"bos_token_id": separator, "eos_token_id": separator, "pad_token_id": separator}
        GenerationConfig.from_dict(generation).save_pretrained(temporary)
        shutil.copyfile(log, temporary / "training_log.jsonl")
        (temporary / "README.md").write_text(card(temporary, facts), encoding="utf-8")
        for path in sorted(temporary.iterdir()):
            os.chmod(path, 0o644)
            os.replace(path, target / path.name)


def _name_portable_tokenizer_class(config: Path) -> None:
    """Name the class that transformers 4 and 5 both know."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("backend", "is_local", "local_files_only"):  # how it was saved, not what it is
        settings.pop(key, None)
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def card(directory: Path, facts: TrainingFacts) -> str:
    """Compose the model card of the model in `directory`.

    Args:
        directory: A complete model directory.
        facts: What is known about training.

    Returns:
        Markdown with YAML front matter; the front matter holds the checksum and all bits per byte.
    """
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    measured: dict[str, dict[str, Any]] = {family: _measure(model, tokenizer, held_out(family)) for family in FAMILIES}
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": "en",
        "model_sha256": hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest(),
        "parameters": model.num_parameters(),
        "python_of_held_out_text": platform.python_version(),
        "training_tokens": facts.tokens_seen,
        "held_out": {
            family: values | {"xz_bits_per_byte": facts.xz_bits_per_byte.get(family)}
            for family, values in measured.items()
        },
    }
    # JSON is YAML: written this way the card needs no YAML writer.
    lines = [f"{key}: {json.dumps(value)}" for key, value in front.items()]
    return "---\n" + "\n".join(lines) + "\n---\n" + _prose(model, tokenizer, facts, measured)


def _measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> dict[str, Any]:
    text = "\n\n".join(documents)
    return {
        "bits_per_byte": round(bits_per_byte(model, tokenizer, documents), 4),
        "first_documents": SUBSET_DOCUMENTS,
        "first_documents_bits_per_byte": round(bits_per_byte(model, tokenizer, documents[:SUBSET_DOCUMENTS]), 4),
        "documents": len(documents),
        "bytes": len(text.encode()),
        "tokens": sum(map(len, tokenizer(list(documents), verbose=False)["input_ids"])),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str = PROMPT) -> str:
    """A seeded continuation of `prompt` by 60 tokens."""
    torch.manual_seed(0)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=60, do_sample=True, top_k=20, temperature=0.8)  # type: ignore[operator]
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


def _prose(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: TrainingFacts,
    measured: Mapping[str, Mapping[str, Any]],
) -> str:
    config = model.config
    hidden, intermediate = config.hidden_size, config.intermediate_size
    rows = "\n".join(
        f"| `bundled:{family}` | {values['documents']} | {values['bytes']:,} | {values['tokens']:,} "
        f"| {values['bits_per_byte']:.3f} | {_optional(facts.xz_bits_per_byte.get(family))} |"
        for family, values in measured.items()
    )
    packages = "\n".join(f"| {name} | {licence} |" for name, licence in sorted(facts.packages.items()))
    return f"""
# The model that ships with praqtune

A causal language model of {model.num_parameters() / 1e6:.1f} million parameters that this repository trained
from nothing, so that a first study runs on a fresh machine without a network. It continues
Python documentation. It is made for measuring what quantization does to a trained model, and for nothing
else: it knows no facts and follows no instructions.

## Architecture

LLaMA: {config.num_hidden_layers} layers, hidden size {hidden}, intermediate size {intermediate} (SiLU),
{config.num_attention_heads} query and {config.num_key_value_heads} key/value heads, tied embeddings, contexts of
at most {config.max_position_embeddings} tokens, weights in bfloat16. Every Linear reads {hidden} or {intermediate}
inputs, so group sizes of 32, 64, 128 and 256 all suit it. The tokenizer is a byte-level BPE of {len(tokenizer):,}
entries, trained on the training text only. It adds no special tokens by default; `{tokenizer.bos_token}` begins and
separates
documents and is bos, eos and padding at once.

## Text

Training text is prose that was installed on the machine that trained the model:

- the core ({facts.core_tokens:,} tokens): docstrings of the Python {platform.python_version()} standard library
  and the topics of `pydoc_data` (PSF License Version 2), without the held-out documents;
- docstrings of the packages below ({facts.extra_tokens:,} tokens).

The core supplies {facts.core_share:.0%} of the sequences. No training paragraph shares 12 consecutive words
with held-out text, and paragraphs that mostly repeat earlier ones were dropped. None of this text is
committed; `objectives/bundled/text.py` reads it again from an installation.

| package | licence |
| --- | --- |
{packages}

## Quality

Bits per UTF-8 byte of the held-out documents, each predicted from the separator on, with windows of 512
tokens that advance by 256, in float32. The last column is what `xz -9e` adds per byte when the held-out text
follows the training text.

| held-out text | documents | bytes | tokens | this model | xz |
| --- | ---: | ---: | ---: | ---: | ---: |
{rows}

The numbers belong to the text of Python {platform.python_version()}; other versions hold slightly different
documents. The held-out loss was logged during training (`training_log.jsonl`) and nothing was chosen by it: these
are the weights after {facts.tokens_seen:,} of {facts.tokens_planned:,} training tokens.

A continuation of "{PROMPT}" (seed 0, temperature 0.8, 20 best tokens):

```text
{sample(model, tokenizer)}
```

## Training

`python -m training.train_bundled` with seed {facts.seed}: Muon for the blocks' matrices and AdamW for
the embedding and the norms, cosine decay after a warmup, batches of 4,096
tokens in rows of 256 and, for the last 30 %, of 512; float32 weights, bfloat16 matrix products on two CPU
cores. {facts.tokens_seen:,} tokens took {facts.cpu_minutes / 2:.0f} minutes of both cores
({facts.minutes:.0f} by the clock, beside other work).

## Licence

The weights and the tokenizer are under the licence of this repository.
"""


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
