"""What `deploy/` would run is what the program takes."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

import cli
from hpo.commands.parser import make_parser

DEPLOY = Path(cli.__file__).parent / "deploy"


def understood(words: list[str]) -> bool:
    """Whether the words after `python cli.py` are a command."""
    start = words.index("cli.py") + 1
    return callable(make_parser().parse_args(words[start:]).run)


def test_the_slurm_script_is_a_script_and_its_command_parses() -> None:
    """With the variables that SLURM and a user set, and without."""
    script = DEPLOY / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("exec ")]
    plain = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", line).replace("$PRAQTUNE_HOME", "home")
    assert "$" not in plain
    assert understood(shlex.split(plain)[1:])
    assert "#SBATCH --requeue" in text


@pytest.mark.parametrize("service", ["workers", "dashboard"])
def test_the_commands_of_the_compose_file_parse(service: str) -> None:
    """And no password is in any of them, or in a URL."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert understood(shlex.split(services[service]["command"]))
    assert services[service]["environment"]["PRAQTUNE_STORAGE"] == "postgresql://praqtune@database/studies"
    assert services["dashboard"]["ports"] == ["127.0.0.1:8080:8080"]


def test_the_entry_point_hands_the_secret_on_and_becomes_the_command() -> None:
    """It is a script that a shell understands."""
    assert subprocess.run(["sh", "-n", DEPLOY / "with-password"], check=False).returncode == 0
    ended = subprocess.run([DEPLOY / "with-password", "echo", "on"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "on\n")
