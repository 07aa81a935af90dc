"""What nvcc reported of the CUDA kernels when this tree was built: none of them may spill registers to memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPORTS = sorted(ROOT.glob("build/native-*/*.cu.o.resources"))

ALLOWED_SPILLS: dict[str, int] = {}
"""Bytes of spills that a kernel (part of its mangled name) may have, with the reason beside it."""


@pytest.mark.skipif(not REPORTS, reason="this tree was built without nvcc, or elsewhere")
@pytest.mark.parametrize("report", REPORTS, ids=lambda p: p.name.split("_cuda")[0])
def test_no_kernel_spills_registers(report: Path) -> None:
    pattern = re.compile(
        r"Compiling entry function '(\S+)' for '(\S+)'.*?(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill",
        re.DOTALL,
    )
    kernels = pattern.findall(report.read_text())
    assert kernels, f"{report} holds no kernel"
    spilled = [
        (name, architecture, int(stores))
        for name, architecture, _, stores, _ in kernels
        if int(stores) > max((v for k, v in ALLOWED_SPILLS.items() if k in name), default=0)
    ]
    assert not spilled
