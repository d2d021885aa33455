"""What a command prints: tables and notes for people, JSON for programs.

Responsible for the form alone. May assume the common flags of `hpo.commands.flags`.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from hpo.commands.streams import written

if TYPE_CHECKING:
    from hpo.report.tables import Table as TextTable

PIPE_WIDTH = 200


def output(parsed: Namespace, record: dict[str, Any], notes: Sequence[str], *tables: Table) -> None:
    """Print for people, or write JSON to the file of `--json` (`-` is standard output)."""
    if parsed.json:
        from storage.files import write_file
        from storage.strict_json import json_text

        if parsed.json == "-":
            with written():
                print(_encodable(json_text(record)), end="")
        else:
            write_file(Path(parsed.json), json_text(record).encode(errors="backslashreplace"))
    if parsed.json != "-":
        # A pipe gets whole lines, whatever the width of the terminal it came from.
        console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, markup=False)
        with written():
            for table in tables:
                console.print(table)
            for note in notes:
                console.print(note, soft_wrap=True)


def _encodable(text: str) -> str:
    """Return JSON that standard output can encode: escaped, not transliterated, so that it means the same."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(json.loads(text), indent=1) + "\n"
    return text


def make_table(first: str, *others: str) -> Table:
    """Make an empty table with these column titles; the first column is never folded."""
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, overflow="fold")
    return table


def report_table(table: "TextTable") -> Table:
    """A table of the report for the terminal."""
    printed = make_table(table.title, *table.columns[1:])
    for row in table.rows:
        printed.add_row(*row)
    return printed
