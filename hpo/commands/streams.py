"""Standard output and standard error, whatever they can take: another encoding, no room, nobody who reads.

Responsible for writing every character somehow, and for one line where nothing can be written. May assume that nothing
was written before.
"""

import codecs
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from objectives.errors import InputError
from storage.errors import StorageError

TRANSLITERATE = "transliterate"
# What has no ASCII of its own in Unicode's tables.
WORDS = {
    "–": "-", "—": "-", "−": "-", "…": "...", "‘": "'", "’": "'", "“": '"', "”": '"', "×": "x", "·": "*", "±": "+-",
    "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "→": "->", "←": "<-", "√": "sqrt", "Σ": "sum", "∞": "inf", "•": "*",
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "λ": "lambda", "μ": "mu", "σ": "sigma", "τ": "tau",
    "Δ": "Delta", "ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d",
}  # fmt: skip


def transliterated(text: str, encoding: str) -> str:
    """Return text with every character that an encoding lacks replaced by some that it has."""
    return "".join(_in_encoding(character, encoding) for character in text)


def take_any_character() -> None:
    """Have standard output and standard error take any character, before anything is written."""
    codecs.register_error(TRANSLITERATE, _replace)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=TRANSLITERATE)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def require_output(json_file: str | None) -> None:
    """See that there is a standard output for the result.

    Args:
        json_file: Where a program wants the result; None for standard output.

    Raises:
        InputError: If standard output is closed and the result has no other place.
    """
    if sys.stdout is None:
        if json_file in (None, "-"):
            raise InputError(
                "standard output is closed, so the result would be lost; send it to a file or to /dev/null, or add "
                "--json FILE"
            )
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


@contextmanager
def written() -> Iterator[None]:
    """Turn what standard output refuses inside the block into an error of one line.

    Raises:
        StorageError: If it is full, or nobody reads it any more.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # What is still in the buffer cannot be written when the interpreter ends either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise StorageError(
            f"cannot write to standard output: {error.strerror or error}; send it elsewhere, or add --json FILE"
        ) from error


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return transliterated(error.object[error.start : error.end], error.encoding), error.end


def _in_encoding(character: str, encoding: str) -> str:
    plain = WORDS.get(character) or unicodedata.normalize("NFKD", character)
    for candidate in (character, plain, "".join(part for part in plain if not unicodedata.combining(part))):
        try:
            candidate.encode(encoding)
        except UnicodeEncodeError:
            continue
        if candidate:
            return candidate
    return "?"
