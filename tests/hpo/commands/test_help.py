"""What help says: the values that a flag takes, and examples that the program takes as they stand."""

import argparse
import re
import shlex
from importlib import import_module

import pytest

from hpo.commands.flags import METHOD_HELP, add_options, add_setting_flags
from hpo.commands.parser import COMMANDS, make_parser
from hpo.study.options import RefineOptions
from objectives.refinement_record import PARTS
from quant.parameters import PARAMETERS
from quant.recipes import recipe_fields
from quant.setting import PRESETS, RECIPE

EXAMPLES = [
    (name, line)
    for name in COMMANDS
    for line in re.sub(r"\\\n +", " ", import_module(f"hpo.commands.{name}").COMMAND.examples).splitlines()
    if "%(prog)s" in line and "[" not in line
]


@pytest.mark.parametrize(("name", "line"), EXAMPLES)
def test_every_example_of_a_help_is_understood(name: str, line: str) -> None:
    """A reader may copy what help shows; what explains an example stands some blanks behind it."""
    words = shlex.split(re.split(" {3,}", line.strip())[0])
    assert callable(make_parser().parse_args([name, *words[1:]]).run)


def flag_help(parser: argparse.ArgumentParser, flag: str) -> str:
    """What help says of a flag, on one line."""
    text = " ".join(parser.format_help().partition("options:")[2].split())
    return text.partition(f" {flag} ")[2].partition(" --")[0]


@pytest.mark.parametrize("name", [name for name, row in PARAMETERS.items() if row.choices and row.flag != "--method"])
def test_help_names_every_value_of_a_parameter_with_few(name: str) -> None:
    """Nobody has to guess a value, or make an error to see it."""
    parser = argparse.ArgumentParser()
    add_setting_flags(parser)
    words = flag_help(parser, PARAMETERS[name].flag)
    assert all(str(value) in words for value in PARAMETERS[name].choices)


def test_help_names_the_parts_that_refining_tunes() -> None:
    """Whoever wants some of them knows what to type."""
    parser = argparse.ArgumentParser()
    add_options(parser, RefineOptions, "refining")
    words = flag_help(parser, "--refine-parts").partition("(default")[0]
    assert all(part in words for part in PARTS)


def test_the_recipe_that_help_names_is_the_recommended_one() -> None:
    """Help shows the ingredients of the preset, with asymmetric codes."""
    (name,) = re.findall(r"gw-awq\+[a-z+]+", METHOD_HELP)
    named, preset = recipe_fields({"method": name}), PRESETS[RECIPE].as_dict()
    assert {key: preset[key] for key in named if key != "method"} == {k: v for k, v in named.items() if k != "method"}
