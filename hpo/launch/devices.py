"""Which worker computes on which device, and what its process has to be told before it starts.

Responsible for `--workers` and `--devices`. May assume that a process sees only the GPU it is pinned to, as its
first, and that PyTorch takes the number of its threads from the environment when it is imported.
"""

import os
from collections.abc import Mapping, Sequence

import torch

from objectives.errors import InputError

AUTO, CPU, GPU = "auto", "cpu", "cuda"
VISIBLE, THREADS = "CUDA_VISIBLE_DEVICES", ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def gpus() -> list[str]:
    """List the GPUs that this process sees."""
    return [f"{GPU}:{index}" for index in range(torch.cuda.device_count())]


def assigned(workers: int | None, devices: str, present: Sequence[str]) -> list[str]:
    """Assign a device to each worker, in turn.

    Args:
        workers: How many; None for one per device.
        devices: `auto` (every GPU, else the CPU), `cpu`, or names separated by commas.
        present: The GPUs there are.

    Raises:
        InputError: If there are no workers, or a device is not there.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers} is not at least 1")
    named = list(present or [CPU]) if devices == AUTO else [_full(name) for name in devices.split(",")]
    absent = [name for name in named if name not in (CPU, *present)]
    if absent:
        available = ", ".join([CPU, *present])
        raise InputError(f"--devices {devices!r}: {', '.join(absent)} is not there; there are: {available}")
    return [named[index % len(named)] for index in range(workers or len(named))]


def worker_environment(device: str, devices: Sequence[str], visible: str | None, cores: int) -> dict[str, str]:
    """Set up the environment that a worker's process starts with.

    Args:
        device: Its own.
        devices: Those of all workers of this machine: workers on the CPU divide its cores.
        visible: `CUDA_VISIBLE_DEVICES` of this process; the numbers of its devices count in there.
        cores: Of this machine that may be used.
    """
    if device == CPU:
        threads = max(1, cores // sum(other == CPU for other in devices))
        return {VISIBLE: "", **dict.fromkeys(THREADS, str(threads))}
    index = int(device.removeprefix(f"{GPU}:"))
    return {VISIBLE: visible.split(",")[index].strip() if visible else str(index)}


def name_inside(device: str) -> str:
    """Name the device as a pinned process calls it."""
    return CPU if device == CPU else GPU


def usable_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def allowed_gpus(environ: Mapping[str, str]) -> str | None:
    """Read which GPUs this process was allowed, as they are named for its children."""
    return environ.get(VISIBLE) or None


def _full(name: str) -> str:
    name = name.strip()
    return f"{GPU}:0" if name == GPU else name
