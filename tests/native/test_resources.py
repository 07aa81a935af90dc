"""What nvcc reported of the CUDA kernels when this tree was built: none may spill registers, but for the known ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPORTS = sorted(ROOT.glob("build/native-*/*.cu.o.resources"))

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
KNOWN_SPILLS = {
    # The gradient's coefficients, a small part of the backward pass; the half-type maximum.
    "cosine_correlation19coefficients_kernelIff": (0, 40, 0, 0),
    "cosine_correlation19coefficients_kernelIdd": (16, 4, 24, 0),
    "cosine_correlation19coefficients_kernelINS": (0, 0, 4, 0),
    "cosine_correlation16correlate_kernelIffLb0E": (0, 0, 4, 16),
    "cosine_correlation16correlate_kernelINS_6bf16_tEfLb0E": (0, 0, 0, 12),
    "cosine_correlation16correlate_kernelINS_6half_tEfLb0E": (0, 0, 0, 12),
    "cosine_correlation16correlate_kernelINS_6bf16_tEfLb1E": (0, 4, 56, 88),
    "cosine_correlation16correlate_kernelINS_6half_tEfLb1E": (0, 4, 56, 88),
    "cosine_correlation19pack_support_kernel": (0, 0, 0, 8),
    "cosine_similarity_to_prototypes13values_kernel": (4, 0, 0, 0),
    "cosine_similarity_to_prototypes27values_channels_last_kernel": (24, 0, 8, 0),
    # Gradient of key and value for heads of 128, forward for heads of 64; heads of 32 (Mask2Former) spill on 8.0 only.
    "masked_attention14combine_kernel": (0, 0, 4, 0),
    "masked_attention16query_fma_kernelIfLi2ELb0E": (4, 12, 8, 16),
    "masked_attention19forward_half_kernelINS_6bf16_tELi32E": (40, 0, 0, 0),
    "masked_attention19forward_half_kernelINS_6half_tELi32E": (40, 0, 0, 0),
    "masked_attention19forward_half_kernelINS_6bf16_tELi64E": (12, 28, 20, 0),
    "masked_attention19forward_half_kernelINS_6half_tELi64E": (12, 28, 20, 0),
    "masked_attention20grad_key_half_kernelINS_6bf16_tELi128E": (76, 80, 24, 40),
    "masked_attention20grad_key_half_kernelINS_6half_tELi128E": (76, 80, 24, 40),
    "masked_average_pooling14weights_kernel": (0, 0, 0, 24),
    "masked_average_pooling14weights_kernelIhf": (4, 0, 0, 24),
    "point_mask_loss18values_grad_kernelIdd": (0, 0, 0, 8),
}
"""Bytes of spill stores on each of ARCHITECTURES, by a part of a kernel's mangled name (nvcc 13.0): none may grow, none
may join, and on an architecture that is not there none is known."""


def _known(kernel: str, architecture: str) -> int:
    if architecture not in ARCHITECTURES:
        return 0
    at = ARCHITECTURES.index(architecture)
    return max((spills[at] for part, spills in KNOWN_SPILLS.items() if part in kernel), default=0)


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
        if int(stores) > _known(name, architecture)
    ]
    assert not spilled
