"""What command lines print, for tests: their JSON, or the one line with which they are refused.

May assume that pytest captures both outputs.
"""

import json
from typing import Any

import cli


def printed(capsys: Any, *arguments: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    capsys.readouterr()
    assert cli.main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys: Any, *arguments: str, code: int = 2) -> str:
    """The one line with which a command line is refused."""
    capsys.readouterr()
    assert cli.main([*arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    # Whatever takes two seconds says so on a line of its own.
    (line,) = [line for line in captured.err.splitlines() if line.startswith("praqtune: ")]
    return line
