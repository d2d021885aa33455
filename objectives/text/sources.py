"""Text sources: from the name a user types to a list of documents.

Responsible for reading and for telling documents apart. Names are `bundled:...`, `c4`, `wikitext2`,
`hub:org/name[:config[:split[:column]]]`, or a local text, JSON lines or parquet file. A row is a document: its text, or
its messages as the model's chat template renders them. May assume that the first `POOL` documents represent a source.
"""

import gzip
import itertools
import json
import logging
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from objectives.bundled import text as bundled
from objectives.errors import InputError
from objectives.model.hub import hub_errors
from objectives.text.conversations import render

log = logging.getLogger(__name__)

POOL = 10_000
TEXT, MESSAGES = "text", "messages"
HUB_NAMES = {"c4": "hub:allenai/c4:en:validation:text", "wikitext2": "hub:Salesforce/wikitext:wikitext-2-raw-v1:test"}
SUFFIXES = (".txt", ".raw", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
ALLOWED = (
    "allowed: bundled:docstrings, bundled:topics, bundled:training, c4, wikitext2, "
    f"hub:org/name[:config[:split[:column]]], or a file ending in {', '.join(SUFFIXES)}"
)
# Some editors begin a file with a byte-order mark, which is no text.
ENCODING = "utf-8-sig"
WIKITEXT_HEADING = re.compile(r"^ = (?!=).*[^=] = *$", re.MULTILINE)
BLANK_LINES = re.compile(r"\n[ \t]*\n")
# Half of a character beyond the first 65,536, as text that was cut there has it; no encoding holds one.
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd"


def read_documents(source: str, tokenizer: Any = None) -> list[str]:
    """Read the non-empty documents of a source, at most `POOL`, in its own order.

    Args:
        source: A name, as above.
        tokenizer: Of the model; it has the chat template for rows of messages. None where there are no such rows.

    Raises:
        InputError: If the source is unknown, absent, not text or empty, or has messages that cannot be rendered.
    """
    documents = [text for text in itertools.islice(_documents(source, tokenizer), POOL) if text.strip()]
    if not documents:
        raise InputError(f"{source} has no text; {ALLOWED}")
    return documents


def _documents(source: str, tokenizer: Any) -> Iterable[str]:
    if source.startswith("bundled:"):
        return _bundled(source)
    name = HUB_NAMES.get(source, source)
    if name.startswith("hub:"):
        return _articles(_hub(name, tokenizer)) if source == "wikitext2" else _hub(name, tokenizer)
    return _file(Path(source), tokenizer)


def _bundled(source: str) -> list[str]:
    try:
        match source.removeprefix("bundled:"):
            case "docstrings" | "topics" as name:
                return bundled.held_out(name)
            case "training":
                return bundled.training_documents()
    except FileNotFoundError as error:
        raise InputError(str(error)) from error
    raise InputError(f"{source} is unknown; {ALLOWED}")


def _hub(name: str, tokenizer: Any) -> Iterator[str]:
    # Imported here because it takes a second, and most runs read local text.
    import datasets

    parts = name.removeprefix("hub:").split(":")
    if not parts[0] or len(parts) > 4:
        raise InputError(f"{name} is not of the form hub:org/name[:config[:split[:column]]]")
    repository, config, split, column = parts + [""] * (4 - len(parts))
    with hub_errors(f"data set {repository}", datasets.exceptions.DatasetsError, RuntimeError):
        rows = datasets.load_dataset(repository, config or None, split=split or "validation", streaming=True)
        for number, row in enumerate(rows, 1):
            yield _text_of(row, column or TEXT, f"{name} row {number}", tokenizer)


def _file(path: Path, tokenizer: Any) -> Iterable[str]:
    if not path.is_file():
        raise InputError(f"{path} is not a file; {ALLOWED}")
    reader = next((reader for suffix, reader in _READERS.items() if path.name.endswith(suffix)), None)
    if reader is None:
        raise InputError(f"{path} is of an unknown kind; {ALLOWED}")
    try:
        return list(itertools.islice(reader(path, tokenizer), POOL))
    except (UnicodeDecodeError, EOFError, OSError, zlib.error, pa.ArrowException) as error:
        remedy = "; convert it to UTF-8, as with `iconv -t utf-8`" if isinstance(error, UnicodeDecodeError) else ""
        raise InputError(f"{path} cannot be read as {path.suffix}: {' '.join(str(error).split())}{remedy}") from error


def _plain(path: Path, _: Any) -> Iterator[str]:
    """Split at WikiText's article headings where the file has them, at blank lines otherwise."""
    text = path.read_text(encoding=ENCODING)
    if WIKITEXT_HEADING.search(text):
        return _articles(text.splitlines(keepends=True))
    return iter(BLANK_LINES.split(text))


def _articles(lines: Iterable[str]) -> Iterator[str]:
    article: list[str] = []
    for line in lines:
        if WIKITEXT_HEADING.match(line) and article:
            yield "".join(article)
            article = []
        article.append(line)
    yield "".join(article)


def _json_lines(path: Path, tokenizer: Any) -> Iterator[str]:
    open_text = gzip.open if path.suffix == ".gz" else open
    halves, first = 0, 0
    try:
        with open_text(path, "rt", encoding=ENCODING) as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                whole = _text_of_line(line, f"{path} line {number}", tokenizer)
                text, count = LONE_SURROGATE.subn(REPLACEMENT, whole)
                halves, first = halves + count, first or (number if count else 0)
                yield text
    finally:
        # Also where enough of it was read.
        if halves:
            log.warning("%s: %d halves of characters were replaced, the first in line %d", path, halves, first)


def _text_of_line(line: str, where: str, tokenizer: Any) -> str:
    try:
        row = json.loads(line)
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply to be read") from error
    except ValueError as error:
        # Also of numbers that are too long.
        raise InputError(f"{where} is not JSON: {getattr(error, 'msg', error)}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} is not an object with a field {TEXT!r} or {MESSAGES!r}")
    return _text_of(row, TEXT, where, tokenizer)


def _parquet(path: Path, tokenizer: Any) -> Iterator[str]:
    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        columns = [name for name in (TEXT, MESSAGES) if name in names][:1]
        if not columns:
            raise InputError(f"{path} has no column {TEXT!r} or {MESSAGES!r}; it has {', '.join(names)}")
        batches = file.iter_batches(batch_size=256, columns=columns)
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, row in enumerate(rows, 1):
            yield _text_of(row, TEXT, f"{path} row {number}", tokenizer)


def _text_of(row: Mapping[str, object], column: str, where: str, tokenizer: Any) -> str:
    """Return the text of a column, or render the messages in it; a row without `text` may have `messages`."""
    if column == TEXT and TEXT not in row and MESSAGES in row:
        return render(row[MESSAGES], tokenizer, where)
    value = row.get(column)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and column != TEXT:
        return render(value, tokenizer, where)
    if column in row:
        raise InputError(f"{where} holds {type(value).__name__} in {column!r}, not text")
    wanted = f"{TEXT!r} or {MESSAGES!r}" if column == TEXT else repr(column)
    raise InputError(f"{where} has no column {wanted}; it has {', '.join(map(str, row))}")


_KINDS = {".txt": _plain, ".raw": _plain, ".jsonl": _json_lines, ".json": _json_lines, ".parquet": _parquet}
# C4's own files end in `.json.gz`, and hold JSON lines.
_READERS = {suffix: _KINDS[suffix.removesuffix(".gz")] for suffix in SUFFIXES}
