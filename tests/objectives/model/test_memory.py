"""How much memory is left: what the machine has, and what limits leave of it."""

import resource
from pathlib import Path

import psutil
import pytest
import torch

from objectives.model import memory
from objectives.model.memory import available_bytes, keep_freed_memory

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CONTROL_GROUPS", ())


def limited(monkeypatch: pytest.MonkeyPatch, kind: int, left: int) -> None:
    """A limit that leaves so many bytes of what the process has of that kind."""
    about = psutil.Process().memory_info()
    used = {resource.RLIMIT_DATA: about.data, resource.RLIMIT_AS: about.vms}[kind]
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (used + left,) * 2 if asked == kind else unlimited)


def test_without_limits_it_is_the_machines() -> None:
    """No limit and no control group leave what the machine has."""
    assert available_bytes(CPU) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.parametrize("kind", [resource.RLIMIT_DATA, resource.RLIMIT_AS])
def test_a_limit_of_the_process_leaves_less(monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    """`ulimit -d` and `ulimit -v` count, and what is freed is then given back to the system."""
    tuned: list[int] = []

    class Library:
        def mallopt(self, parameter: int, value: int) -> None:
            tuned.append(parameter)

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Library())
    keep_freed_memory()
    assert len(tuned) == 2
    limited(monkeypatch, kind, 10**7)
    assert available_bytes(CPU) <= 10**7 + 10**6
    keep_freed_memory()
    assert len(tuned) == 2


@pytest.mark.parametrize(("limit", "expected"), [("30000000", 30_000_000 - 5_000_000 + 2_000_000), ("max", None)])
def test_a_control_group_leaves_less(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, expected: int | None
) -> None:
    """What a container may use less what it does, but for what was read from files; a group may have no limit."""
    for name, text in (("max", limit), ("current", "5000000"), ("memory.stat", "anon 3000000\nfile 2000000\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "CONTROL_GROUPS", ((tmp_path / "max", tmp_path / "current"),))
    if expected is None:
        assert available_bytes(CPU) > 10**8
    else:
        assert available_bytes(CPU) == expected
