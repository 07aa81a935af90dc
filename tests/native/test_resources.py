"""What nvcc reported of the CUDA kernels when this tree was built: none may spill registers, but for the known ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPORTS = sorted(ROOT.glob("build/native-*/*.cu.o.resources"))

KNOWN_SPILLS = {
    # The gradient's coefficients, a small part of the backward pass, and the half-type maximum.
    "cosine_correlation19coefficients_kernel": 40,
    "cosine_correlation16correlate_kernel": 4,
    # On 8.0 only.
    "cosine_similarity_to_prototypes13values_kernel": 4,
    "cosine_similarity_to_prototypes27values_channels_last_kernel": 24,
    # Gradient of key and value for heads of 128, forward for heads of 64; heads of 32 (Mask2Former) spill on 8.0 only.
    "masked_attention20grad_key_half_kernel": 88,
    "masked_attention19forward_half_kernel": 36,
    "masked_attention16query_fma_kernelIfLi2E": 20,
    "masked_average_pooling14weights_kernelIhfE": 4,
}
"""Bytes of spill stores of the kernels that have any, by a part of their mangled name: none may grow, none may join."""


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
        if int(stores) > max((v for k, v in KNOWN_SPILLS.items() if k in name), default=0)
    ]
    assert not spilled
