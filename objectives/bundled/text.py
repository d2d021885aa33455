"""Responsible for the bundled text: prose of the running Python installation, read at use, never committed.

Two families of documents: `docstrings` (one document per standard-library module) and `topics` (one per
entry of `pydoc_data.topics`). A hash of the name alone decides which documents are held out, so another
patch level of Python keeps the split. Standard library only; the sources must be installed as `.py` files.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

Family = Literal["docstrings", "topics"]

MODEL_DIRECTORY: Path = Path(__file__).resolve().parent / "model"

HELD_OUT_SHARE: Mapping[Family, float] = {"docstrings": 0.38, "topics": 0.5}
MINIMUM_CHARACTERS = 200
"""Shorter documents are left out: they are a title at most."""
RUN_WORDS = 12
"""Training text that repeats this many consecutive words of held-out text is a near-duplicate of it."""

_SALT = "praqtune-12"
# Tests and demos are code, not prose; idlelib, lib2to3 and distutils are absent from many installations;
# `encodings` repeats one generated sentence per code page.
_NO_PROSE = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "distutils", "turtledemo", "encodings", "pydoc_data"}
    | {"site-packages", "dist-packages", "_bundled", "_vendor", "__pycache__", "__phello__"}
)
# The fields that hold the statements of a statement, in source order.
_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")
_WORD = re.compile(r"\w+")
_PARAGRAPH_BREAK = re.compile(r"\n[ \t]*\n")


def held_out(name: Family) -> list[str]:
    """Return the held-out documents of one family, for calibration and evaluation.

    Args:
        name: `docstrings` (in distribution) or `topics` (cross distribution).

    Returns:
        The documents in a fixed order that mixes subjects (by hash of the name), so that a prefix is a
        fair sample. Topics that another held-out topic mostly contains are left out.

    Raises:
        ValueError: `name` is neither family.
        FileNotFoundError: This Python was installed without its sources.
    """
    if name not in HELD_OUT_SHARE:
        raise ValueError(f"unknown bundled text {name!r}; there are: {', '.join(HELD_OUT_SHARE)}")
    documents = _split(name, held=True)
    if name == "topics":
        documents = _without_contained(documents)
    return [documents[key] for key in sorted(documents, key=lambda key: _fraction("order", key))]


def training_documents(extra_packages: Sequence[str] = ()) -> list[str]:
    """Return the documents a model may be trained on.

    Args:
        extra_packages: Import names of installed packages whose docstrings are added.

    Returns:
        Docstrings of the standard library, then topics, then one document per module of the extra
        packages, each without the paragraphs that repeat `RUN_WORDS` consecutive words of held-out text.

    Raises:
        FileNotFoundError: This Python, or one of the packages, has no sources here.
    """
    roots = {package: _package_root(package) for package in extra_packages}
    forbidden = {
        run for family in HELD_OUT_SHARE for text in _split(family, held=True).values() for run in word_runs(text)
    }
    texts = [text for family in HELD_OUT_SHARE for text in _split(family, held=False).values()]
    for package, root in roots.items():
        texts += _modules(root, package).values()
    cleaned = (_without_runs(text, forbidden) for text in texts)
    return [text for text in cleaned if len(text) >= MINIMUM_CHARACTERS]


def is_held_out(family: Family, name: str) -> bool:
    """Return whether the document `name` (a dotted module name or a topic) belongs to the held-out split.

    Modules are decided by their package, and `_pydecimal` with `decimal`: text that moves inside a
    package or behind its C accelerator in another Python version stays on its side of the split.
    """
    key = name.split(".")[0].removeprefix("_py").lstrip("_") if family == "docstrings" else name
    return _fraction(family, key) < HELD_OUT_SHARE[family]


def word_runs(text: str, length: int = RUN_WORDS) -> Iterator[tuple[str, ...]]:
    """Yield every run of `length` consecutive words of `text`, lower-cased, punctuation dropped."""
    words = _WORD.findall(text.lower())
    return zip(*(words[start:] for start in range(length)), strict=False)


@cache
def _split(family: Family, *, held: bool) -> Mapping[str, str]:
    """Map names to texts of the held-out documents of a family, or of the others, in order; parsed once."""

    def wanted(name: str) -> bool:
        return is_held_out(family, name) is held

    if family == "docstrings":
        return _modules(Path(os.__file__).resolve().parent, "", wanted)
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    texts = {name: topics[name].strip() for name in sorted(topics) if wanted(name)}
    return {name: text for name, text in texts.items() if len(text) >= MINIMUM_CHARACTERS}


def _modules(root: Path, prefix: str, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, str]:
    """Map the dotted name of every wanted module under `root` to its docstrings, in order of name."""
    paths = {name: path for name, path in _sources(root, prefix) if wanted(name)}
    texts = {name: _docstrings(paths[name]) for name in sorted(paths)}
    texts = {name: text for name, text in texts.items() if len(text) >= MINIMUM_CHARACTERS}
    if not texts:
        raise FileNotFoundError(
            f"no Python sources with docstrings under {root}; the bundled text is read from there: "
            "use a Python installation that includes its .py files, or give your own --calib-data and --eval-data"
        )
    return texts


def _sources(root: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and path of every module under `root` that may hold prose."""
    for directory, subdirectories, files in os.walk(root):
        subdirectories[:] = [name for name in subdirectories if name not in _NO_PROSE and name.isidentifier()]
        parts = [part for part in (prefix, *Path(directory).relative_to(root).parts) if part]
        for file in files:
            stem, suffix = os.path.splitext(file)
            if suffix == ".py" and stem.isidentifier() and not stem.startswith("_sysconfigdata"):
                yield ".".join(parts + ([] if stem == "__init__" else [stem])), Path(directory, file)


def _docstrings(path: Path) -> str:
    """Return all docstrings of one source file, in source order, joined by blank lines."""
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:  # parsing is the slow part
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources hold escapes that newer parsers warn of
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates and fixtures that are no Python
        return ""
    docstrings = [inspect.cleandoc(text) for text in _raw_docstrings(tree)]
    return "\n\n".join(text for text in docstrings if text).strip()


def _raw_docstrings(node: ast.AST) -> Iterator[str]:
    """Yield docstrings in source order, descending only into statements: expressions hold none."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=False)
        if text:
            yield text
    for block in _BLOCKS:
        for child in getattr(node, block, ()):
            yield from _raw_docstrings(child)


def _package_root(package: str) -> Path:
    """Return the directory of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"package {package!r} is not installed; install it or leave it out")
    return Path(spec.submodule_search_locations[0])


def _fraction(purpose: str, name: str) -> float:
    """Return a number in [0, 1) that depends on nothing but the arguments."""
    digest = hashlib.sha256(f"{_SALT}/{purpose}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _without_contained(documents: Mapping[str, str]) -> dict[str, str]:
    """Drop documents of which more than half repeats longer ones (`compound` includes `try`, ...)."""
    kept: dict[str, str] = {}
    earlier_runs: set[tuple[str, ...]] = set()
    for name in sorted(documents, key=lambda name: (-len(documents[name]), name)):
        runs = set(word_runs(documents[name]))
        if len(runs & earlier_runs) * 2 <= len(runs):
            kept[name] = documents[name]
            earlier_runs |= runs
    return kept


def _without_runs(text: str, forbidden: set[tuple[str, ...]]) -> str:
    """Drop the paragraphs of `text` that take part in a forbidden run of words."""
    paragraphs = _PARAGRAPH_BREAK.split(text)
    while True:
        owner = [index for index, paragraph in enumerate(paragraphs) for _ in _WORD.findall(paragraph.lower())]
        touched: set[int] = set()
        for start, run in enumerate(word_runs("\n\n".join(paragraphs))):
            if run in forbidden:
                touched.update(owner[start : start + RUN_WORDS])
        if not touched:
            return "\n\n".join(paragraphs).strip()
        # Removal makes new neighbours, hence new runs: repeat until none is left.
        paragraphs = [paragraph for index, paragraph in enumerate(paragraphs) if index not in touched]
