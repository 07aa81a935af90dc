"""Memory of a process and of its device: how much it took at most, and how much there is."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> dict[str, int]:
    """Megabytes (2^20 bytes) at the highest so far.

    Returns:
        "process": resident memory of this process since it began; "device": tensors on a CUDA device, and
        "device_reserved": what the allocator has taken for them.
    """
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = {"process": resident >> (20 if sys.platform == "darwin" else 10)}  # bytes there, kilobytes elsewhere
    if device.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(device) >> 20
        peak["device_reserved"] = torch.cuda.max_memory_reserved(device) >> 20
    return peak


def available_memory(device: torch.device) -> int:
    """Bytes that a training may still take: free ones of a CUDA device, else of the machine or this container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = re.search(r"MemAvailable:\s+(\d+) kB", _text("/proc/meminfo"))
    free = int(found[1]) << 10 if found else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if (most := _text(limit).strip()).isdecimal():
            free = min(free, int(most))
    return free


def _text(file: str) -> str:
    """Of a file of the system; "" where this system has none."""
    try:
        return Path(file).read_text(encoding="ascii")
    except OSError:
        return ""
