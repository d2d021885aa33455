"""`status`: where a study stands, once or until Ctrl-C.

Responsible for the flags, the table and the line of this command.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import suppress
from time import sleep
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from hpo.commands.command import Command
from hpo.commands.flags import add_study_flags
from hpo.commands.output import make_table, output
from hpo.commands.stores import opened_study
from hpo.commands.streams import written
from objectives.errors import InputError

EXAMPLES = """examples:
  %(prog)s                                        the study that was begun last
  %(prog)s --watch                                refreshed until Ctrl-C
  %(prog)s --study mine --storage sqlite:///study.db --json
"""


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of this command."""
    add_study_flags(parser)
    parser.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=2.0,
        metavar="SECONDS",
        help="refresh every SECONDS (default 2) until Ctrl-C",
    )


def run(parsed: Namespace) -> None:
    """Print where the study stands."""
    from hpo.study.record import read_study
    from hpo.study.status import summary
    from storage.typed_json import encode

    with opened_study(parsed) as study:
        if parsed.watch is not None:
            watch(parsed, lambda: encode(summary(read_study(study))))
            return
        facts = encode(summary(read_study(study)))
    output(parsed, facts, [], status_table(facts))


def watch(parsed: Namespace, look: Callable[[], dict[str, Any]]) -> None:
    """Show the study until Ctrl-C: renewed on a terminal, a line whenever it changes elsewhere.

    Raises:
        InputError: If the seconds are none, or JSON is wanted.
    """
    if parsed.json or not parsed.watch > 0:
        raise InputError("--watch takes seconds above 0 and goes without --json; call status --json again instead")
    console = Console(highlight=False, markup=False)
    with suppress(KeyboardInterrupt):
        if console.is_terminal:
            with Live(status_table(look()), console=console, auto_refresh=False) as live:
                while True:
                    sleep(parsed.watch)
                    live.update(status_table(look()), refresh=True)
        printed = ""
        while True:
            line = status_line(look())
            if line != printed:
                with written():
                    print(line)
            printed = line
            sleep(parsed.watch)


def status_table(facts: dict[str, Any]) -> Table:
    """The facts for people, a row each."""
    table = make_table("", "")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _text(value))
    return table


def status_line(facts: dict[str, Any]) -> str:
    """The facts that change, in one line."""
    trials = ", ".join(f"{count} {state.lower()}" for state, count in facts["trials"].items()) or "no trials"
    running = ", ".join(
        f"trial {trial['number']} after {trial['sequences_read']} sequences" for trial in facts["running"]
    )
    best = "; ".join(f"{size}: {text}" for size, text in facts["best"].items())
    return " | ".join(part for part in (f"{facts['study']}: {trials}", running, best) if part)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_text(part)}" for name, part in value.items()) or "-"
    if isinstance(value, list):
        return "\n".join(_text(part) for part in value) or "-"
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)


COMMAND = Command(examples=EXAMPLES, add_flags=add_flags, run=run)
