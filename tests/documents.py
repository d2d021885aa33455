"""What the documents for programs say: the tables of fields, by the name in their head."""

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def documented_fields(name: str) -> dict[str, list[str]]:
    """The fields of each table `| NAME | what it holds |` of a document, by that name."""
    tables: dict[str, list[str]] = {}
    text = (DOCS / name).read_text(encoding="utf-8")
    for head, rows in re.findall(r"^\| ([^|`]+) \| what it holds \|\n\|---\|---\|\n((?:\|.*\n)+)", text, re.M):
        tables[head] = re.findall(r"^\| `([^`]+)` \|", rows, re.M)
    return tables
