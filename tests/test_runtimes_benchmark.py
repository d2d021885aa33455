"""What `benchmarks/runtimes.py` says of a runtime's own tokenizer."""

import pytest
from transformers import AutoTokenizer

from benchmarks.runtimes import TEXTS, differing_texts
from objectives.bundled.text import MODEL_DIRECTORY


@pytest.mark.parametrize("digits", [True, False])
def test_texts_that_a_runtime_takes_apart_in_another_way_are_named(digits: bool) -> None:
    """As where digits are split otherwise; the scored text and special tokens are looked at, too."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIRECTORY)
    asked = []

    def tokenize(text: str) -> list[int]:
        asked.append(text)
        parts = list(text) if digits and text.startswith("1234") else [text]
        return [token for part in parts for token in tokenizer(part).input_ids]

    assert differing_texts(tokenize, tokenizer, ["a scored text"]) == ([TEXTS[0]] if digits else [])
    assert {"a scored text", *TEXTS} < set(asked)
    assert any(tokenizer.all_special_tokens[0] in text for text in asked)
