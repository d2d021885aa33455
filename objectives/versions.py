"""Which version of the project runs, and of the packages that its numbers depend on.

Responsible for answering also in a clone that was not installed. pyproject.toml is the one place where it stands.
"""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROJECT = "praqtune"
PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def project_version() -> str:
    """Return the version that was installed, or the one that the clone has."""
    try:
        return version(PROJECT)
    except PackageNotFoundError:
        return str(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["version"])


def versions() -> dict[str, str]:
    """List the versions of the project and of the packages that numbers and files depend on, by name."""
    return {PROJECT: project_version(), **{name: version(name) for name in ("torch", "transformers")}}
