"""What benchmarks/on_gpu.sh leaves: one file that several runs add to, and the tables that are printed from it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="needs the source tree")


def _load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def _row(group: str, implementation: str, seconds: float, without_host: bool = True) -> dict[str, object]:
    numbers = {"seconds": seconds, "peak_bytes": 2_000_000, "without_host": without_host}
    return {"group": group, "implementation": implementation, **numbers}


def test_runs_add_to_one_file_and_replace_what_they_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conftest, file = _load("conftest", monkeypatch), tmp_path / "gpu.json"
    machine = {"device": "a GPU"}
    file.write_text(json.dumps({"steps": {"build": {"exit_code": 0}}}))
    conftest._write(file, machine, [_row("a", "fssops", 1.0), _row("a", "composition", 2.0)])
    conftest._write(file, machine, [_row("b", "fssops", 3.0), _row("a", "fssops", 4.0)])
    content = json.loads(file.read_text())
    found = {(row["group"], row["implementation"]): row["seconds"] for row in content["measurements"]}
    assert found == {("a", "composition"): 2.0, ("b", "fssops"): 3.0, ("a", "fssops"): 4.0}
    assert content["steps"] == {"build": {"exit_code": 0}}
    with pytest.raises(pytest.UsageError, match=r"gpu\.json must be of another, got a GPU"):
        conftest._write(file, {"device": "another"}, [])


def test_table_leaves_out_what_holds_the_hosts_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [_row("device", "fssops", 1e-3), _row("device", "composition", 4e-3), _row("device", "peer", 9e-3, False)]
    rows += [_row("host", "fssops", 1e-3, False), _row("host", "composition", 5e-3)]
    kernel = {
        "name": "forward_half_kernel<bf16_t, 32>", "microseconds": 12.34, "blocks": 256, "threads": 224,
        "registers": 127, "shared_bytes": 20480, "occupancy_percent": 21,
    }  # fmt: skip
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"measurements": rows, "kernels": [kernel]}))
    monkeypatch.setattr(sys, "argv", ["table.py", str(file)])
    _load("table", monkeypatch).main()
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| device | 4.00 ms | 1.00 ms | 4.0 |  | 2.0 to 2.0 MB |",
        "",
        "| kernel | us | blocks x threads | registers | shared memory | occupancy |",
        "|---|---|---|---|---|---|",
        "| forward_half_kernel<bf16_t, 32> | 12.3 | 256 x 224 | 127 | 20480 B | 21 % |",
    ]


def test_profile_keeps_our_kernels_and_their_median(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {
        "grid": [8, 4, 1], "block": [128, 1, 1], "registers per thread": 40, "shared memory": 512,
        "est. achieved occupancy %": 50,
    }  # fmt: skip
    name = "void fssops::masked_attention::combine_kernel<fssops::bf16_t, float>(fssops::masked_attention::Sizes, int)"
    events = [{"cat": "kernel", "name": name, "dur": dur, "args": facts} for dur in [5.0] * 11 + [50.0] * 9]
    events += [{"cat": "kernel", "name": "void at::native::copy_kernel", "dur": 1.0, "args": facts}]
    events += [{"cat": "cuda_runtime", "name": "cudaLaunchKernel fssops", "dur": 1.0, "args": {}}]
    (row,) = _load("kernel_profile", monkeypatch).kernel_rows(events)
    assert row["name"] == "masked_attention::combine_kernel<bf16_t, float>"
    assert (row["microseconds"], row["launches_a_call"], row["blocks"], row["threads"]) == (5.0, 1.0, 32, 128)
