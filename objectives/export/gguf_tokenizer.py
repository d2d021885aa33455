"""Put a tokenizer into a GGUF file, or say why it cannot be.

Responsible for byte-level BPE tokenizers, whose splitting of text llama.cpp knows by names; merges, special tokens and
chat template are read by the package `gguf`. May assume a tokenizer of transformers that was saved to the directory.
"""

import json
from pathlib import Path
from typing import Any

from objectives.errors import InputError

REMEDY = "use --format compressed-tensors, which leaves the tokenizer as it is"
# The regular expressions by which llama.cpp splits text, as tokenizer.json has them.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def require_tokenizer(tokenizer: Any, vocabulary: int) -> None:
    """Refuse a tokenizer that GGUF cannot express.

    Raises:
        InputError: With the reason and what to do instead.
    """
    described = _described(tokenizer)
    model = described["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise InputError(
            f"gguf is written with byte-level BPE tokenizers, and this is another {model['type']}; {REMEDY}"
        )
    if splitting(described) is None:
        raise InputError(f"the tokenizer splits text as no tokenizer does that llama.cpp knows; {REMEDY}")
    if len(tokenizer) > vocabulary:
        raise InputError(f"the tokenizer has {len(tokenizer)} tokens, and the model {vocabulary}; {REMEDY}")


def splitting(described: Any) -> str | None:
    """Return what llama.cpp calls the splitting of text that `tokenizer.json` describes; None where it has no name."""
    steps = described["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    normalizer = described["normalizer"]
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space") or normalizer not in (None, {"type": "NFC"}):
        return None
    if last.get("use_regex", True):
        before = [(step["type"], step.get("individual_digits")) for step in steps[:-1]]
        return {(): "gpt-2", (("Digits", True),): "smollm"}.get(tuple(before))
    patterns = [step.get("pattern", {}).get("Regex") for step in steps[:-1] if step.get("behavior") == "Isolated"]
    if len(patterns) != 1 or len(steps) != 2:
        return None
    return {QWEN2: "qwen2", LLAMA3: "llama-bpe"}.get(patterns[0])


def add_tokenizer(writer: Any, tokenizer: Any, place: Path, vocabulary: int) -> None:
    """Add tokens, their kinds, merges, special tokens and the chat template to a file that is being written.

    Args:
        writer: Of the file.
        tokenizer: What is added.
        place: The directory that it was saved to.
        vocabulary: How many tokens the model has; those that the tokenizer has not are named and unused.
    """
    import gguf

    tokens = [f"[PAD{number}]" for number in range(vocabulary)]
    kinds = [gguf.TokenType.UNUSED] * vocabulary
    for token, number in tokenizer.get_vocab().items():
        tokens[number], kinds[number] = token, gguf.TokenType.NORMAL
    for number, added in tokenizer.added_tokens_decoder.items():
        kinds[number] = gguf.TokenType.CONTROL if added.special else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting(_described(tokenizer)))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    gguf.SpecialVocab(place, load_merges=True, n_vocab=vocabulary).add_to_gguf(writer, quiet=True)


def _described(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"gguf needs a tokenizer.json, and {type(tokenizer).__name__} has none; {REMEDY}")
    return json.loads(backend.to_str())
