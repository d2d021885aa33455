"""Shells complete commands, flags and names."""

import shutil
import subprocess
from pathlib import Path

import pytest

import cli

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_shtab_praqtune
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert cli.main(["completion", "bash"]) == 0
    path = tmp_path / "praqtune.bash"
    path.write_text(capsys.readouterr().out)
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["st"], {"status", "study"}),
        (["study", "re"], {"repair", "retry"}),
        (["optimize", "--n-"], {"--n-grid", "--n-calib"}),
        (["optimize", "--sampler", ""], {"gp", "tpe", "random", "qmc", "grid"}),
        (["quantize", "--format", "c"], {"compressed-tensors"}),
        (["evaluate", "--scales", ""], {"linear", "foldable"}),
    ],
)
def test_bash_completes(script: Path, words: list[str], expected: set[str]) -> None:
    """What bash is given is what bash offers."""
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", str(script), "praqtune", *words], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == expected


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a function of the directory that its functions are in."""
    assert cli.main(["completion", "zsh"]) == 0
    (tmp_path / "_praqtune").write_text(capsys.readouterr().out)
    code = f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -D; echo $_comps[praqtune]"
    done = subprocess.run(["zsh", "-fc", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("_praqtune\n", "")


def test_another_shell_is_refused() -> None:
    """With those that there are."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["completion", "cmd"])
    assert stopped.value.code == 2
