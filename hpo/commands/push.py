"""`push`: put a model directory that was proven into a repository of the hub.

Responsible for the flags and the table of this command.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from hpo.commands.command import Command
from hpo.commands.output import make_table, output
from storage.typed_json import encode

EXAMPLES = """examples:
  %(prog)s ./best-int4 me/model-int4
  %(prog)s ./best/gguf me/model-gguf --private
"""


def add_flags(parser: ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory that `quantize` wrote and proved")
    parser.add_argument("repository", metavar="REPO", help="hub repository OWNER/NAME; created if missing")
    parser.add_argument("--private", action="store_true", help="if it is created, only its owner can see it")


def run(parsed: Namespace) -> None:
    """Upload it and print where it is."""
    from hpo.deploy.push import push

    pushed = push(parsed.directory, parsed.repository, parsed.private)
    table = make_table("", "")
    for name, text in (
        ("pushed to", pushed.repository),
        ("commit", pushed.commit),
        ("files", str(pushed.files)),
        ("MB", f"{pushed.bytes / 1e6:.2f}"),
        *((("files of an earlier push, removed", str(pushed.removed)),) if pushed.removed else ()),
    ):
        table.add_row(name, text)
    output(parsed, encode(pushed), [], table)


COMMAND = Command(examples=EXAMPLES, add_flags=add_flags, run=run)
