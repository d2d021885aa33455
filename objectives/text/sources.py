"""Text sources: from the name a user types to a list of documents.

Responsible for reading and for telling documents apart. Names are `bundled:...`, `c4`, `wikitext2`,
`hub:org/name[:config[:split[:column]]]`, or a local text, JSON lines or parquet file. May assume that the first `POOL`
documents of a source represent it.
"""

import gzip
import itertools
import json
import logging
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from objectives.bundled import text as bundled
from objectives.errors import InputError
from objectives.model.hub import hub_errors

log = logging.getLogger(__name__)

POOL = 10_000
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


def read_documents(source: str) -> list[str]:
    """Read the non-empty documents of a source, at most `POOL`, in its own order.

    Raises:
        InputError: If the source is unknown, absent, not text or empty.
    """
    documents = [text for text in itertools.islice(_documents(source), POOL) if text.strip()]
    if not documents:
        raise InputError(f"{source} has no text; {ALLOWED}")
    return documents


def _documents(source: str) -> Iterable[str]:
    if source.startswith("bundled:"):
        return _bundled(source)
    name = HUB_NAMES.get(source, source)
    if name.startswith("hub:"):
        return _articles(_hub(name)) if source == "wikitext2" else _hub(name)
    return _file(Path(source))


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


def _hub(name: str) -> Iterator[str]:
    # Imported here because it takes a second, and most runs read local text.
    import datasets

    parts = name.removeprefix("hub:").split(":")
    if not parts[0] or len(parts) > 4:
        raise InputError(f"{name} is not of the form hub:org/name[:config[:split[:column]]]")
    repository, config, split, column = parts + [""] * (4 - len(parts))
    with hub_errors(f"data set {repository}", datasets.exceptions.DatasetsError, RuntimeError):
        rows = datasets.load_dataset(repository, config or None, split=split or "validation", streaming=True)
        yield from (_text_of(row, column or "text", name) for row in rows)


def _file(path: Path) -> Iterable[str]:
    if not path.is_file():
        raise InputError(f"{path} is not a file; {ALLOWED}")
    reader = next((reader for suffix, reader in _READERS.items() if path.name.endswith(suffix)), None)
    if reader is None:
        raise InputError(f"{path} is of an unknown kind; {ALLOWED}")
    try:
        return list(itertools.islice(reader(path), POOL))
    except (UnicodeDecodeError, EOFError, OSError, zlib.error, pa.ArrowException) as error:
        remedy = "; convert it to UTF-8, as with `iconv -t utf-8`" if isinstance(error, UnicodeDecodeError) else ""
        raise InputError(f"{path} cannot be read as {path.suffix}: {' '.join(str(error).split())}{remedy}") from error


def _plain(path: Path) -> Iterator[str]:
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


def _json_lines(path: Path) -> Iterator[str]:
    open_text = gzip.open if path.suffix == ".gz" else open
    halves, first = 0, 0
    try:
        with open_text(path, "rt", encoding=ENCODING) as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                text, count = LONE_SURROGATE.subn(REPLACEMENT, _text_of_line(line, f"{path} line {number}"))
                halves, first = halves + count, first or (number if count else 0)
                yield text
    finally:
        # Also where enough of it was read.
        if halves:
            log.warning("%s: %d halves of characters were replaced, the first in line %d", path, halves, first)


def _text_of_line(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply to be read") from error
    except ValueError as error:
        # Also of numbers that are too long.
        raise InputError(f"{where} is not JSON: {getattr(error, 'msg', error)}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} is not an object with a text field")
    return _text_of(row, "text", where)


def _parquet(path: Path) -> Iterator[str]:
    with pyarrow.parquet.ParquetFile(path) as file:
        if "text" not in file.schema_arrow.names:
            raise InputError(f"{path} has no column 'text'; it has {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(batch_size=256, columns=["text"]):
            yield from (_text_of(row, "text", str(path)) for row in batch.to_pylist())


def _text_of(row: Mapping[str, object], column: str, where: str) -> str:
    text = row.get(column)
    if isinstance(text, str):
        return text
    if column not in row:
        raise InputError(f"{where} has no column {column!r}; it has {', '.join(map(str, row))}")
    raise InputError(f"{where} holds {type(text).__name__} in {column!r}, not text")


_KINDS = {".txt": _plain, ".raw": _plain, ".jsonl": _json_lines, ".json": _json_lines, ".parquet": _parquet}
# C4's own files end in `.json.gz`, and hold JSON lines.
_READERS = {suffix: _KINDS[suffix.removesuffix(".gz")] for suffix in SUFFIXES}
