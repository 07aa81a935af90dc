"""Inputs of the point operators, for tests and benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor

from fssops.reference.mask_sources import MaskSource, PackedMasks, RunLengthMasks
from fssops.testing.cases import PointLossCase


def point_inputs(
    case: PointLossCase, dtype: torch.dtype, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(logits [N, h, w], bool masks [M, H, W], points, target index or None) of a case."""
    logits = (3 * torch.randn(case.masks, *case.size, dtype=torch.float64)).to(device, dtype)
    masks = (torch.rand(case.targets or case.masks, *case.mask_size) > 0.5).to(device)
    shape = (1 if case.shared_points else case.masks, case.points, 2)
    points = torch.rand(shape, dtype=torch.float64) * (1 + 2 * case.outside) - case.outside
    points = points.to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    index = torch.randint(0, case.targets, (case.masks,)).to(device) if case.targets else None
    return logits, masks, points, index


def mask_sources(masks: Tensor) -> dict[str, MaskSource]:
    """Bool masks [M, H, W] in every form that the operators take."""
    return {
        "bool": masks,
        "uint8": masks.to(torch.uint8),
        "float32": masks.float(),
        "bfloat16": masks.to(torch.bfloat16),
        "bits": PackedMasks.pack(masks),
        "runs": run_lengths(masks),
    }


def run_lengths(masks: Tensor) -> RunLengthMasks:
    """Run lengths of bool masks [M, H, W], counted here: what the tests compare with must not come from a library."""
    counted = []
    for mask in masks.cpu():
        down = mask.T.reshape(-1).to(torch.int8)
        changes = (down[1:] != down[:-1]).nonzero()[:, 0] + 1
        edges = torch.cat((torch.zeros(1, dtype=torch.int64), changes, torch.tensor([len(down)])))
        counts = edges.diff().tolist()
        counted.append({"size": list(mask.shape), "counts": [0, *counts] if bool(down[0]) else counts})
    size = (int(masks.shape[1]), int(masks.shape[2]))
    return RunLengthMasks.from_coco(counted, size).to(masks.device)
