"""The table of contents of the command line: every command with its summary, and the parser that knows them.

Responsible for loading the module of a command only when that command is asked for. Adding a command is a module beside
the others and its line in `COMMANDS`.
"""

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from hpo.commands.command import Command, Group

PROGRAM = "praqtune"
COMMANDS = {
    "optimize": "begin, resume or join a study",
    "status": "show where a study stands",
    "show": "show everything that is known of a study",
    "report": "write a study's report",
    "dashboard": "show every study in a browser",
    "evaluate": "measure a model's perplexity, as it is or quantized",
    "quantize": "write a quantized model directory",
    "push": "upload a proven model directory to the hub",
    "compare": "compare methods and models side by side",
    "calibrate": "fill the calibration cache in advance",
    "study": "list, remove, move or repair studies",
    "cache": "list, check or remove calibration entries",
    "completion": "print a script for a shell to complete commands and flags",
}
"""Summaries by name; `hpo.commands.NAME` has the rest."""


class LazyParser(argparse.ArgumentParser):
    """Gets its flags when they are needed: most command lines need those of one command.

    Attributes:
        fill: Adds them; None once it has.
    """

    def __init__(self, *, fill: Callable[["LazyParser"], None], **named: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **named)
        self.fill: Callable[[LazyParser], None] | None = fill

    def filled(self) -> "LazyParser":
        """This parser with its flags."""
        fill, self.fill = self.fill, None
        if fill is not None:
            fill(self)
        return self

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as any parser does."""
        self.filled()
        return super().parse_known_args(args, namespace)


class ShowVersion(argparse.Action):
    """Prints the version and ends. It is looked up only then, because that takes longer than parsing."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print what `--version` asks for."""
        from objectives.versions import project_version

        print(f"{PROGRAM} {project_version()}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands; what it parses has the command's `run` among the options."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Hyperparameter optimization for INT4 quantization of causal language models."
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=LazyParser)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, fill=_filler(name))
    return parser


def _filler(name: str) -> Callable[[LazyParser], None]:
    def fill(parser: LazyParser) -> None:
        stated: Command | Group = import_module(f"hpo.commands.{name}").COMMAND
        if isinstance(stated, Command):
            _fill(parser, stated)
        else:
            parser.epilog = stated.examples
            actions = parser.add_subparsers(required=True, metavar="ACTION")
            for action, entry in stated.actions.items():
                actions.add_parser(action, help=entry.summary, fill=_action_filler(entry.command))

    return fill


def _action_filler(command: Command) -> Callable[[LazyParser], None]:
    return lambda parser: _fill(parser, command)


def _fill(parser: LazyParser, command: Command) -> None:
    from hpo.commands.flags import add_common_flags

    parser.epilog = command.examples
    add_common_flags(parser)
    command.add_flags(parser)
    parser.set_defaults(run=command.run)
