"""The emulation itself: it computes what CUDA would, and it finds planted faults."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from emulate import HERE, emulated, pointer


def _sum_blocks(threads: int, *, skip_barrier: bool, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    library = emulated("selftest")
    library.set_order_seed(seed)
    values = torch.randn(3, threads)
    out = torch.full_like(values, float("nan"))
    library.sum_blocks(pointer(values), pointer(out), 3, threads, skip_barrier)
    return out, values.sum(1, keepdim=True).expand_as(out)


@pytest.mark.parametrize("threads", [1, 31, 64, 257])
def test_barriers_make_shared_memory_visible(threads: int) -> None:
    got, want = _sum_blocks(threads, skip_barrier=False, seed=1)
    torch.testing.assert_close(got, want)


def test_missing_barrier_shows() -> None:
    got, _ = _sum_blocks(64, skip_barrier=True, seed=1)
    assert got.isnan().any(), "threads read shared memory that nobody had written yet"


def test_shuffles_and_ballots() -> None:
    values = torch.randn(32)
    sums, ballots = torch.zeros(32), torch.zeros(32, dtype=torch.int32)
    emulated("selftest").collectives(pointer(values), pointer(sums), pointer(ballots))
    torch.testing.assert_close(sums, values.sum().expand(32))
    bits = sum(1 << i for i in range(32) if values[i] > 0)
    assert {int(b) & 0xFFFFFFFF for b in ballots} == {bits}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_warp_matrix_multiply(dtype: torch.dtype) -> None:
    a, b = torch.randn(16, 16).to(dtype).float(), torch.randn(16, 8).to(dtype).float()
    d = torch.zeros(16, 8)
    emulated("selftest").multiply(pointer(a), pointer(b), pointer(d), dtype == torch.bfloat16)
    torch.testing.assert_close(d, a @ b)


def test_half_types_round_as_torch_does() -> None:
    special = torch.tensor(
        [0.0, -0.0, 1.0, 65504.0, 65519.0, 65520.0, 1e6, -1e6, 6e-8, 2.9e-8, 3e-8, 5e-5, float("inf")]
    )
    values = torch.cat([special, torch.randn(20000) * torch.logspace(-9, 5, 20000)])
    halves, bfloats = torch.empty_like(values), torch.empty_like(values)
    emulated("selftest").round_trip(pointer(values), pointer(halves), pointer(bfloats), ctypes.c_int64(len(values)))
    assert torch.equal(halves, values.half().float())
    assert torch.equal(bfloats, values.bfloat16().float())


@pytest.mark.parametrize(("steps", "too_many", "late", "right"), [
    (7, False, False, True), (7, False, True, True), (2, False, True, True), (7, True, False, True),
    (7, True, True, False),
])  # fmt: skip
def test_copy_that_is_read_before_it_is_waited_for_shows_when_copies_are_late(
    steps: int, too_many: bool, late: bool, right: bool
) -> None:
    library = emulated("selftest")
    library.set_late_copies(late)
    threads = 32
    values, sums = torch.randn(steps, threads, 4), torch.empty(threads)
    library.pipeline(pointer(values), pointer(sums), threads, steps, too_many)
    library.set_late_copies(False)
    expected = values.sum((0, 2)).view(-1, 2).flip(1).flatten()
    assert torch.allclose(sums, expected, atol=1e-5) == right


def test_misaligned_copy_is_reported() -> None:
    done = _in_subprocess("l.misaligned_copy(pointer(torch.zeros(8)))", sanitize=False)
    assert done.returncode != 0
    assert "no multiples of 16" in done.stderr


@pytest.mark.parametrize("blocking", [False, True])
def test_launch_that_fails_names_operator_and_kernel(blocking: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # In a process of its own, where the setting is read anew and no sanitizer is preloaded: theirs cannot see a throw.
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", str(int(blocking)))
    code = (
        "import ctypes; l.message_of_launch.restype = ctypes.c_char_p\n"
        "for answer in ((0, 0, False), (701, 0, False), (0, 700, False), (0, 700, True)):\n"
        "    print(l.message_of_launch(*answer).decode())"
    )
    refused = "fssops: selftest: launching (sum_kernel) failed: too many resources requested for launch"
    fault = "fssops: selftest: running (sum_kernel) failed: an illegal memory access was encountered"
    # While a graph is captured nothing runs that could be waited for.
    done = _in_subprocess(code, sanitize=False)
    assert done.stdout.splitlines() == ["", refused, fault if blocking else "", ""], done.stderr


def _in_subprocess(code: str, sanitize: bool) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    if sanitize:
        library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        environment.update(
            FSSOPS_EMULATION_SANITIZE="address",
            LD_PRELOAD=library.stdout.strip(),
            ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0",
        )
    else:
        environment.pop("FSSOPS_EMULATION_SANITIZE", None)
    program = f"import torch\nfrom emulate import emulated, pointer\nl = emulated('selftest')\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment, cwd=Path.cwd()
    )


def test_write_past_shared_memory_is_caught_by_the_address_sanitizer() -> None:
    done = _in_subprocess("out = torch.zeros(32); l.out_of_bounds(pointer(out), 1)", sanitize=True)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def test_correct_kernel_passes_the_address_sanitizer() -> None:
    done = _in_subprocess("out = torch.zeros(32); l.out_of_bounds(pointer(out), 0)", sanitize=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_barrier_that_not_all_threads_reach_is_reported() -> None:
    done = _in_subprocess("l.divergent_barrier()", sanitize=False)
    assert done.returncode != 0
    assert "others never reach" in done.stderr
