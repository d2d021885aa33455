"""`cache ls|verify|rm`: the entries of the calibration cache.

Responsible for the flags and the tables of these actions.
"""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from hpo.commands.command import Action, Command, Group
from hpo.commands.output import make_table, output
from hpo.commands.stores import paths_of
from objectives.errors import RunError

if TYPE_CHECKING:
    from storage.cache import TensorCache

EXAMPLES = """examples:
  %(prog)s ls
  %(prog)s verify --json -
  %(prog)s rm KEY [KEY ...]
"""
LS_EXAMPLES = """examples:
  %(prog)s
  %(prog)s --json entries.json
"""
VERIFY_EXAMPLES = """examples:
  %(prog)s
  %(prog)s --cache /shared/praqtune
"""
RM_EXAMPLES = """examples:
  %(prog)s KEY [KEY ...]                          keys as `cache ls` shows them
  %(prog)s --all
"""


def list_them(parsed: Namespace) -> None:
    """List the entries."""
    entries = _cache(parsed).entries()
    table = make_table("key", "MB", "holds")
    for entry in entries:
        holds = ", ".join(f"{name} {value}" for name, value in entry.about.items())
        table.add_row(entry.key, f"{entry.size / 1e6:.1f}", holds)
    records = [{"key": entry.key, "bytes": entry.size, **entry.about} for entry in entries]
    total = sum(entry.size for entry in entries)
    output(parsed, {"entries": records}, [f"{len(entries)} entries, {total / 1e9:.2f} GB"], table)


def verify(parsed: Namespace) -> None:
    """Read every entry.

    Raises:
        RunError: If some are damaged.
    """
    cache = _cache(parsed)
    problems = {entry.key: cache.verify(entry.key) for entry in cache.entries()}
    damaged = [key for key, damages in problems.items() if damages]
    table = make_table("key", "state")
    for key, damages in problems.items():
        table.add_row(key, "; ".join(damages) or "whole")
    records = [{"key": key, "problems": damages} for key, damages in problems.items()]
    output(parsed, {"entries": records}, [f"{len(problems)} entries, {len(damaged)} damaged"], table)
    if damaged:
        raise RunError(f"damaged: {', '.join(damaged)}; `cache rm` them, or let the next run compute them again")


def add_rm_flags(parser: ArgumentParser) -> None:
    """Add the flags of `rm`."""
    entries = parser.add_mutually_exclusive_group(required=True)
    entries.add_argument("keys", nargs="*", default=[], help="keys as `cache ls` shows them", metavar="KEY")
    entries.add_argument("--all", action="store_true", help="remove every entry")


def remove(parsed: Namespace) -> None:
    """Remove entries."""
    cache = _cache(parsed)
    keys = [entry.key for entry in cache.entries()] if parsed.all else parsed.keys
    for key in keys:
        cache.remove(key)
    output(parsed, {"removed": keys}, [f"{len(keys)} entries removed"])


def no_flags(parser: ArgumentParser) -> None:
    """Add none."""


def _cache(parsed: Namespace) -> "TensorCache":
    from storage.cache import TensorCache

    return TensorCache(paths_of(parsed))


COMMAND = Group(
    examples=EXAMPLES,
    actions={
        "ls": Action(summary="list entries", command=Command(examples=LS_EXAMPLES, add_flags=no_flags, run=list_them)),
        "verify": Action(
            summary="read every entry and name damaged files",
            command=Command(examples=VERIFY_EXAMPLES, add_flags=no_flags, run=verify),
        ),
        "rm": Action(
            summary="remove entries", command=Command(examples=RM_EXAMPLES, add_flags=add_rm_flags, run=remove)
        ),
    },
)
