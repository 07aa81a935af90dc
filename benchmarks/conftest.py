"""The ``measure`` fixture and the table of ratios that ``pytest benchmarks`` ends with.

Every benchmark runs the same work in several implementations, under one group name: ``fssops``, ``composition`` (the
PyTorch calls that the published code makes), and where there are any ``compiled`` and ``peer`` ones. What counts is the
ratio within one run on one machine. On the CPU pytest-benchmark times; on a GPU device events do, with the L2 cache
flushed before every call, as in real use. Peak memory is what the call allocates above what was there before it.

Options: --device cpu|cuda, --threads N, --results FILE (JSON with machine, date and versions).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import machine


@dataclass
class Measurement:
    """One implementation of one piece of work."""

    group: str
    implementation: str
    device: str
    seconds: float
    peak_bytes: int
    bytes_moved: float
    operations: float
    rounds: int


_RESULTS: list[Measurement] = []
_LIMITS: dict[str, float] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure")
    parser.addoption("--threads", type=int, default=2, help="CPU threads (the published figures use 2)")
    parser.addoption("--results", default=None, help="write the measurements to this JSON file")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the benchmarks run; skips all of them when it is not there."""
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("--device cuda needs a CUDA device")
    torch.set_num_threads(request.config.getoption("--threads"))
    return torch.device(name)


def _cpu_peak(function: Callable[[], Any]) -> int:
    """Most bytes of tensors alive at once during a call, from the profiler's allocation events."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    del result
    total = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


def _cuda_peak(function: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = function()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def _cuda_times(function: Callable[[], Any], budget: float = 0.5) -> list[float]:
    """Seconds of each call, by device events, after warming up; the L2 cache is flushed between calls."""
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    times: list[float] = []
    spent = 0.0
    while len(times) < 10 or (spent < budget and len(times) < 200):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
        spent += times[-1]
    return times


def _limits(device: torch.device) -> dict[str, float]:
    """What this machine can do at most: bytes a second of a large copy, operations a second of a large product."""
    if _LIMITS:
        return _LIMITS
    size = 2**28 if device.type == "cuda" else 2**25
    source, target = torch.ones(size, device=device), torch.empty(size, device=device)
    n = 8192 if device.type == "cuda" else 2048
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}

    def seconds(function: Callable[[], Any]) -> float:
        if device.type == "cuda":
            return statistics.median(_cuda_times(function, 0.2))
        import timeit

        function()
        return min(timeit.repeat(function, number=1, repeat=5))

    _LIMITS["copy"] = 2 * 4 * size / seconds(lambda: target.copy_(source))
    for name, dtype in kinds.items():
        a, b = torch.randn(n, n, device=device).to(dtype), torch.randn(n, n, device=device).to(dtype)
        _LIMITS[name] = 2 * n**3 / seconds(lambda a=a, b=b: a @ b)
    return _LIMITS


@pytest.fixture
def measure(benchmark: Any, device: torch.device) -> Callable[..., None]:
    """measure(function, group=, implementation=, bytes_moved=, operations=): time it and keep the result.

    bytes_moved and operations are the least that the work needs (each input read once, each output written once;
    a multiplication and an addition count as two); they give the share of the machine's limit.
    """

    def run(
        function: Callable[[], Any],
        *,
        group: str,
        implementation: str,
        bytes_moved: float = 0.0,
        operations: float = 0.0,
    ) -> None:
        benchmark.group = group
        _limits(device)
        if device.type == "cuda":
            times = _cuda_times(function)
            peak = _cuda_peak(function)
            benchmark.pedantic(lambda: None, rounds=1)  # keeps pytest-benchmark's own table in step
        else:
            function()
            peak = _cpu_peak(function)
            start = benchmark._timer()
            function()
            once = benchmark._timer() - start
            rounds = int(min(50, max(5, 1.0 / max(once, 1e-6))))
            benchmark.pedantic(function, rounds=rounds, warmup_rounds=1)
            times = list(benchmark.stats.stats.data)
        benchmark.extra_info.update(implementation=implementation, peak_bytes=peak)
        _RESULTS.append(
            Measurement(
                group, implementation, device.type, statistics.median(times), peak, bytes_moved, operations, len(times)
            )
        )

    return run


def _share(m: Measurement, limit: str) -> float | None:
    """Least time for the bytes or the operations, whichever is longer, over the time taken."""
    if not (m.bytes_moved or m.operations):
        return None
    least = max(m.bytes_moved / _LIMITS["copy"], m.operations / _LIMITS[limit])
    return least / m.seconds


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not _RESULTS:
        return
    write = terminalreporter.write_line
    write("")
    gpu = torch.cuda.get_device_name() if config.getoption("--device") == "cuda" else None
    where = {**machine(gpu), "limits": {name: float(f"{value:.4g}") for name, value in _LIMITS.items()}}
    write(f"{where['device']}, {where['threads']} threads, torch {where['torch']}, {where['date']}")
    write(f"{'work':58} {'implementation':16} {'ms':>9} {'times':>7} {'MB':>9} {'share':>6}")
    groups: dict[str, list[Measurement]] = {}
    for m in _RESULTS:
        groups.setdefault(m.group, []).append(m)
    rows = []
    for group, members in groups.items():
        ours = next((m for m in members if m.implementation == "fssops"), None)
        for m in members:
            limit = "bfloat16" if any(t in group for t in ("bfloat16", "float16", "bf16")) else "float32"
            share = _share(m, limit)
            times = m.seconds / ours.seconds if ours else None  # how many times faster fssops is than this
            rows.append({**asdict(m), "times_slower_than_fssops": times, "share_of_limit": share})
            write(
                f"{group[:58]:58} {m.implementation[:16]:16} {m.seconds * 1e3:9.3f} "
                f"{'' if times is None else f'{times:.2f}':>7} {m.peak_bytes / 1e6:9.2f} "
                f"{'' if share is None else f'{share:.0%}':>6}"
            )
    path = config.getoption("--results")
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps({"machine": where, "measurements": rows}, indent=1) + "\n")
        write(f"wrote {path}")
