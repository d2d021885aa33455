"""`completion`: print what makes a shell complete commands, flags and names.

Responsible for the names behind flags that are not checked by the parser. May assume that shtab knows argparse.
"""

import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Iterator

from hpo.commands.command import Command
from hpo.commands.streams import written

EXAMPLES = """examples:
  praqtune completion bash > ~/.local/share/bash-completion/completions/praqtune
  praqtune completion zsh > ~/.zfunc/_praqtune    in a directory of $fpath
"""
SHELLS = ("bash", "zsh", "tcsh")
FILES = ("FILE", "DIR")


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("shell", choices=SHELLS, help="shell to print a completion script for")


def run(parsed: Namespace) -> None:
    """Print the script."""
    import shtab

    from hpo.commands.parser import make_parser

    parser = make_parser()
    names = completed_names()
    for command in every_parser(parser):
        for action in command._actions:
            if action.metavar in FILES:
                action.complete = shtab.FILE if action.metavar == "FILE" else shtab.DIRECTORY  # type: ignore[attr-defined]
            elif action.dest in names and action.option_strings and action.choices is None:
                action.choices = names[action.dest]
    with written():
        sys.stdout.write(shtab.complete(parser, shell=parsed.shell) + "\n")


def completed_names() -> dict[str, tuple[str, ...]]:
    """The names that a flag's value can have, by what the flag is about."""
    from hpo.launch.launch import LAUNCHERS
    from hpo.search.pruners.registry import PRUNERS
    from hpo.search.samplers.registry import SAMPLERS
    from objectives.export.formats import FORMATS
    from objectives.text.sequences import PROTOCOLS
    from quant.methods import METHODS
    from quant.parameters import PARAMETERS
    from quant.rounding.rounding import ROUNDINGS

    rows = PARAMETERS.items()
    declared = {name: tuple(map(str, parameter.choices)) for name, parameter in rows if parameter.choices}
    return {
        **declared,
        "method": tuple(METHODS),
        "rounding": tuple(ROUNDINGS),
        "sampler": tuple(SAMPLERS),
        "pruner": tuple(PRUNERS),
        "backend": tuple(LAUNCHERS),
        "format": tuple(FORMATS),
        "protocol": PROTOCOLS,
    }


def every_parser(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    """A parser with its flags, and those of all its commands."""
    from hpo.commands.parser import LazyParser

    yield parser.filled() if isinstance(parser, LazyParser) else parser
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for command in action.choices.values():
                yield from every_parser(command)


COMMAND = Command(examples=EXAMPLES, add_flags=add_flags, run=run)
