"""The README's commands are real: each parses, and each make target exists."""

import re
import shlex
from pathlib import Path

import pytest

import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
COMMANDS = [shlex.split(line, comments=True) for line in SHELL.splitlines() if line.strip()]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_of_the_readme_is_understood(words: list[str]) -> None:
    """A command line that a reader copies is one that the program takes."""
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert words[:2] == ["python", "cli.py"]
        assert callable(cli._parser().parse_args(words[2:]).run)


def test_every_link_of_the_documents_leads_somewhere() -> None:
    """Relative links in the top-level documents point at files that exist."""
    for document in ROOT.glob("*.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (ROOT / target).exists(), f"{document.name} links to {target}"


def test_continuous_integration_runs_the_readmes_test_command() -> None:
    """What CI checks is what a reader is told to run."""
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert ["make", "test"] in [words[:2] for words in COMMANDS]
