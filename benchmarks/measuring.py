"""What benchmarks of whole systems share: fresh processes, peak resident memory, the machine, and an episode.

A variant is measured in a process of its own, so that its peak memory is its own: the benchmark's file is run as a
script with ``--measure``, and the last line that it prints is what was measured, as JSON.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fssops.structures import FewShotBatch


def in_fresh_process(file: str, *arguments: object, environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """Run ``FILE --measure ARGUMENTS...`` and return what its last line says."""
    command = [sys.executable, file, "--measure", *map(str, arguments)]
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **paths, **(environment or {})}
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_megabytes() -> float:
    """Highest resident memory of this process; getrusage would count the parent's before the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def fastest(run: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of some calls, after one that is not counted."""
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


class Stopwatch:
    """Times the steps of a piece of work, each by its best of three calls.

    Attributes:
        seconds: step -> seconds, in the order of the calls.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, step: str, function: Callable[[], Any]) -> Any:
        """Time a step; returns what it gives."""
        seconds, result = [], None
        for _ in range(3):
            started = time.perf_counter()
            result = function()
            seconds.append(time.perf_counter() - started)
        self.seconds[step] = min(seconds)
        return result


def print_ratios(title: str, found: Mapping[str, Mapping[str, float]]) -> None:
    """Print seconds and peak memory of variants, and their ratios to the first."""
    base = next(iter(found.values()))
    print(f"\n{title:<22} seconds  times faster  peak MB  of {next(iter(found))}")
    for variant, row in found.items():
        print(
            f"{variant:<22} {row['seconds']:7.3f}  {base['seconds'] / row['seconds']:12.2f}  "
            f"{row['peak_mb']:7.0f}  {row['peak_mb'] / base['peak_mb']:12.2f}"
        )


def processor() -> str:
    """Name of the CPU."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine(device: str | None = None, threads: int | None = None) -> dict[str, Any]:
    """When, where and with what something was measured.

    Args:
        device: its name; None: the CPU's.
        threads: of the CPU; None: those of this process.
    """
    import fssops

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "fssops": fssops.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device or processor(),
        "threads": torch.get_num_threads() if threads is None else threads,
    }


def smooth_episode(side: int, shots: int, coarse: int) -> FewShotBatch:
    """A 1-way episode of smooth random images with an elliptic foreground of about 15 %.

    Args:
        side: of the square images.
        shots: supports.
        coarse: side of the noise that the images are enlarged from.
    """
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(shots + 1, 3, coarse, coarse, generator=generator)
    images = F.interpolate(noise, size=(side, side), mode="bicubic")
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    mask = ((x / 0.5) ** 2 + (y / 0.4) ** 2 < 1).float().expand(1, 1, shots, -1, -1)
    return FewShotBatch(
        support_images=images[None, None, :shots],
        support_foreground=mask,
        support_background=1 - mask,
        query_images=images[None, shots:],
        query_labels=torch.zeros(1, 1, side, side, dtype=torch.long),
        classes=torch.ones(1, 1, dtype=torch.long),
    )
