"""The ``measure`` fixture and the table of ratios that ``pytest benchmarks`` ends with.

Every benchmark runs the same work in several implementations, under one group name: ``fssops``, ``composition`` (the
PyTorch calls that the published code makes), and where there are any ``compiled`` and ``peer`` ones. What counts is the
ratio within one run on one machine. On the CPU pytest-benchmark times; on a GPU device events do, with the L2 cache
flushed before every call, as in real use, and the device held back until the host has asked for all of it: figures are
the device's time, not Python's. Where that cannot be had (a call that waits for the device itself, or asks for more
than the queue holds) the row says so. float32 is float32: TF32 is off. Peak memory is what the call allocates above
what was there before it.

Options: --device cpu|cuda, --threads N, --results FILE (JSON with machine, date and versions; what another run on the
same machine left there is kept).
"""

from __future__ import annotations

import json
import statistics
import time
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
    without_host: bool = True
    """Whether the seconds hold no time of the host: always on a CPU, where it does the work."""


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
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
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


def _spins_a_second() -> float:
    """What torch.cuda._sleep counts to in a second."""
    count, start, end = 20_000_000, torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(count)
    start.record()
    torch.cuda._sleep(count)
    end.record()
    torch.cuda.synchronize()
    return count / (start.elapsed_time(end) / 1e3)


def _cuda_times(function: Callable[[], Any], budget: float = 0.5) -> tuple[list[float], bool]:
    """Seconds of each call, by device events, after warming up; and whether they hold no time of the host.

    Before each call the L2 cache is flushed, and the device spins for as long as the host needs to ask for it.
    """
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    spins = _spins_a_second()
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    host = time.perf_counter() - began
    torch.cuda.synchronize()
    times: list[float] = []
    without_host, began = True, time.perf_counter()
    while len(times) < 10 or (time.perf_counter() - began < budget and len(times) < 200):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        torch.cuda._sleep(int((2 * host + 1e-4) * spins))
        start.record()
        function()
        end.record()
        without_host = without_host and not start.query()  # the device had not begun when all had been asked for
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return times, without_host


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
            return statistics.median(_cuda_times(function, 0.2)[0])
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
        without_host = True
        if device.type == "cuda":
            times, without_host = _cuda_times(function)
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
        seconds = statistics.median(times)
        _RESULTS.append(
            Measurement(
                group, implementation, device.type, seconds, peak, bytes_moved, operations, len(times), without_host
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
                f"{'' if share is None else f'{share:.0%}':>6}{'' if m.without_host else ' with the host'}"
            )
    path = config.getoption("--results")
    if path:
        _write(Path(path), where, rows)
        write(f"wrote {path}")


def _write(path: Path, where: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the rows, after what another run on this machine left in the file and this one did not measure."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    earlier = content.get("machine", where)["device"]
    if earlier != where["device"]:
        raise pytest.UsageError(f"--results: {path} must be of {where['device']}, got {earlier}")
    measured = {(row["group"], row["implementation"]) for row in rows}
    kept = [row for row in content.get("measurements", []) if (row["group"], row["implementation"]) not in measured]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "machine": where, "measurements": kept + rows}, indent=1) + "\n")
