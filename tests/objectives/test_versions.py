"""The project says which version it is, installed or not."""

import tomllib
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

import cli
from objectives import versions

DECLARED = tomllib.loads(versions.PYPROJECT.read_text())["project"]["version"]


def test_the_version_is_printed(capsys: Any) -> None:
    """`--version` needs no command; it ends with exit code 0 and one line on standard output."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (f"praqtune {versions.project_version()}\n", "")


def test_a_clone_that_is_not_installed_has_the_version_it_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials and model directories store their versions there too."""
    installed = versions.version

    def version(name: str) -> str:
        if name == "praqtune":
            raise PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(versions, "version", version)
    assert versions.project_version() == DECLARED
    assert versions.versions() == {
        "praqtune": DECLARED,
        "torch": installed("torch"),
        "transformers": installed("transformers"),
    }
