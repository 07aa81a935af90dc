"""Peak memory of a process and of its device."""

from __future__ import annotations

import sys

import torch


def peak_memory(device: torch.device) -> dict[str, int]:
    """Megabytes (2^20 bytes) at the highest so far.

    Returns:
        "process": resident memory of this process since it began, where the system tells; "device": tensors on a CUDA
        device, and "device_reserved": what the allocator has taken for them.
    """
    found: dict[str, int] = {}
    if sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["process"] = peak >> (20 if sys.platform == "darwin" else 10)  # bytes there, kilobytes elsewhere
    if device.type == "cuda":
        found["device"] = torch.cuda.max_memory_allocated(device) >> 20
        found["device_reserved"] = torch.cuda.max_memory_reserved(device) >> 20
    return found
