"""Responsible for the text that the bundled model learns from, its tokenizer and its token streams.

May assume that `objectives.bundled.text` has already removed everything that repeats held-out text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from objectives.bundled.text import training_documents, word_runs

VOCABULARY_SIZE = 4096
CONTEXT = 512
SEPARATOR = "<|endoftext|>"
CORE_REPEATS = 4
"""How often the tokenizer sees the core: its byte pairs should serve the text that is evaluated."""

PACKAGES: Mapping[str, str] = {
    "numpy": "BSD-3-Clause",
    "scipy": "BSD-3-Clause",
    "sklearn": "BSD-3-Clause",
    "pandas": "BSD-3-Clause",
    "torch": "BSD-3-Clause",
    "transformers": "Apache-2.0",
}
"""Import name of each package whose docstrings are used, and the licence its authors chose."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Training documents: the core (standard library and topics) and everything else."""

    core: tuple[str, ...]
    extra: tuple[str, ...]

    def joined(self) -> bytes:
        """All training text as one byte string, for comparison with a general compressor."""
        return "\n\n".join((*self.core, *self.extra)).encode()


def load_corpus(packages: Sequence[str]) -> Corpus:
    """Read the training text and drop what it repeats within itself.

    Args:
        packages: Import names of the packages to add to the core.

    Returns:
        The documents; core documents are deduplicated first, so nothing of the core is lost to a package.

    Raises:
        FileNotFoundError: A package is not installed.
    """
    core_count = len(training_documents())
    seen: set[int] = set()
    documents = [_without_repeats(text, seen) for text in training_documents(packages)]
    core, extra = documents[:core_count], documents[core_count:]
    return Corpus(core=tuple(filter(None, core)), extra=tuple(filter(None, extra)))


def _without_repeats(text: str, seen: set[int]) -> str:
    """`text` without paragraphs of which most runs of words were seen before; adds its runs to `seen`."""
    kept = []
    for paragraph in text.split("\n\n"):
        runs = {hash(run) for run in word_runs(paragraph)}
        if len(runs & seen) * 2 <= len(runs):
            kept.append(paragraph)
        seen |= runs
    # Headings alone are left of a document that was a copy.
    joined = "\n\n".join(kept).strip()
    return joined if len(joined) * 4 >= len(text) else ""


def train_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on training text only; it adds no special token on its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_weighted(corpus), trainer=trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        pad_token=SEPARATOR,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _weighted(corpus: Corpus) -> Iterator[str]:
    for _ in range(CORE_REPEATS):
        yield from corpus.core
    yield from corpus.extra


def token_stream(tokenizer: PreTrainedTokenizerFast, documents: Sequence[str]) -> NDArray[np.int32]:
    """All documents as one row of tokens, each preceded by the separator."""
    encoded = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    separator = [tokenizer.bos_token_id]
    return np.concatenate([np.array(separator + ids, dtype=np.int32) for ids in encoded])


@dataclass(frozen=True, kw_only=True)
class Streams:
    """Token streams of the core and of everything else, sampled with a fixed share."""

    core: NDArray[np.int32]
    extra: NDArray[np.int32]
    core_share: float

    def batch(self, seed: int, step: int, rows: int, length: int) -> NDArray[np.int64]:
        """Windows `[rows, length + 1]` at random places; depends on nothing but the arguments."""
        generator = np.random.default_rng((seed, step))
        windows = []
        for _ in range(rows):
            stream = self.core if generator.random() < self.core_share else self.extra
            start = int(generator.integers(0, len(stream) - length))
            windows.append(stream[start : start + length + 1])
        return np.stack(windows).astype(np.int64)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write the tokenizer's files into `directory`."""
    tokenizer.save_pretrained(str(directory))
