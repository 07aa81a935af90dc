"""Peak memory of a process and of its device."""

from __future__ import annotations

import resource
import sys

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
