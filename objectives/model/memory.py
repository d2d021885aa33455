"""Memory of a process: its peak during a piece of work, what its allocator keeps, and when there was too little.

Responsible for the operating system's or CUDA's high-water mark, and for one setting of the C library. May assume
that one piece of work is measured at a time in a process.
"""

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")
GROUPS = Path("/sys/fs/cgroup")
CONTROL_GROUPS = (
    (GROUPS / "memory.max", GROUPS / "memory.current"),
    (GROUPS / "memory/memory.limit_in_bytes", GROUPS / "memory/memory.usage_in_bytes"),
)
"""Where a container sees its limit and what it uses, in both versions."""
# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**30
# The allocator, and oneDNN where it finds no room for what a product needs beside its operands.
NO_MEMORY = ("can't allocate memory", "could not create a primitive")


def keep_freed_memory() -> None:
    """Let the C library reuse freed memory instead of returning it to the operating system after every operation.

    Tensors of a few megabytes come and go thousands of times in a trial; fetched anew, each of their pages costs a
    fault. Call it once, when a process starts. Elsewhere than on Linux with glibc it does nothing, nor in a process
    whose memory is limited: what is kept there is missing elsewhere.
    """
    if not sys.platform.startswith("linux") or any(True for _ in _left_by_process_limits()):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def available_bytes(device: torch.device) -> int:
    """Return the memory that can be allocated on `device` now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([int(psutil.virtual_memory().available), *_left_by_limits()])


def _left_by_process_limits() -> Iterator[int]:
    """Yield what each limit of this process leaves it: of its data, of its addresses."""
    process = psutil.Process().memory_info()
    for limit, used in ((resource.RLIMIT_DATA, process.data), (resource.RLIMIT_AS, process.vms)):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            yield max(0, soft - used)


def _left_by_limits() -> Iterator[int]:
    """Yield what each limit leaves: those of this process, and that of its control group."""
    yield from _left_by_process_limits()
    for most, now in CONTROL_GROUPS:
        # A group without a limit says so in a word.
        with suppress(OSError, ValueError):
            limit, used = int(most.read_text()), int(now.read_text())
            about = dict(line.split() for line in (now.parent / "memory.stat").read_text().splitlines())
            # What was read from files is given up when room is needed.
            yield max(0, limit - used + int(about.get("file", about.get("cache", 0))))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; PyTorch has an error type of its own for GPUs, but none for processors."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in NO_MEMORY)


def release_cached(device: torch.device) -> None:
    """Give back what a GPU's allocator keeps for later, so that smaller pieces find room."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> None:
    """Start measuring; where the operating system keeps no resettable mark, the peak is the process's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif RESET.exists():
        # Writing 5 resets the peak resident set size (proc(5)).
        RESET.write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Return the most memory since `reset_peak`: allocated on a GPU, resident in the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
