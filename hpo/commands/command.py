"""What a module of a command says of it, for the parser to read.

Responsible for these words alone.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

STUDY_EXAMPLES = """examples:
  %(prog)s                                        the study that was begun last
  %(prog)s --study mine --storage sqlite:///study.db
"""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command, or an action of a group.

    Attributes:
        examples: What its help ends with; `%(prog)s` is the command itself.
        add_flags: Gives a parser the flags and arguments of this command.
        run: Does what the parsed options say.
    """

    examples: str
    add_flags: Callable[[argparse.ArgumentParser], Any]
    run: Callable[[argparse.Namespace], None]


@dataclass(frozen=True, kw_only=True)
class Action:
    """A command of a group; `summary` is what the group's help says of it."""

    summary: str
    command: Command


@dataclass(frozen=True, kw_only=True)
class Group:
    """Several actions under one name.

    Attributes:
        examples: What its help ends with.
        actions: By name, in the order of its help.
    """

    examples: str
    actions: Mapping[str, Action]
