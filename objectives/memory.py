"""Peak memory of a piece of work, on the device it runs on.

Responsible for resetting and reading the operating system's or CUDA's high-water mark. May assume that one piece of
work is measured at a time in a process.
"""

import resource
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Start measuring; where the operating system keeps no resettable mark, the peak is the process's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif RESET.exists():
        # Writing 5 resets the peak resident set size (proc(5)).
        RESET.write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The highest memory in use since `reset_peak`: allocated on a GPU, resident in the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
