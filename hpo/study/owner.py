"""Who works on a trial: a process, told from every other one on every machine, also after it died.

Responsible for saying whether an owner certainly runs no more. May assume nothing of owners on other machines: they
are alive as long as their heartbeats come.
"""

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BOOT, NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process.

    Attributes:
        name: What a person calls it.
        host: Its machine's name.
        machine: Where its number means something: one boot of one machine, one container. Two containers may have
            the same host's name and see different processes.
        pid: Its number.
        started: When it started, in seconds since the epoch, because numbers are used again.
        device: What it computes on.
    """

    name: str
    host: str
    machine: str
    pid: int
    started: float
    device: str

    @classmethod
    def this(cls, device: str = "cpu", name: str | None = None) -> "Owner":
        """Describe the process that asks."""
        # Imported here, as below: `status` reads owners, and asks nothing of processes.
        import psutil

        host, pid = platform.node(), os.getpid()
        return cls(
            name=name or f"{host}-{pid}",
            host=host,
            machine=_machine(),
            pid=pid,
            started=psutil.Process().create_time(),
            device=device,
        )

    def is_dead(self) -> bool:
        """Tell whether it certainly runs no more."""
        import psutil

        if self.machine != _machine():
            return False
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) > 1.0)
        except psutil.NoSuchProcess:
            return True


@cache
def _machine() -> str:
    import psutil

    boot = BOOT.read_text().strip() if BOOT.exists() else str(int(psutil.boot_time()))
    namespace = NAMESPACE.stat().st_ino if NAMESPACE.exists() else 0
    return f"{platform.node()}/{boot}/{namespace}"
