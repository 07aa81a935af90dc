"""Stochastic depth (Huang et al., ECCV 2016), by samples."""

from __future__ import annotations

import torch
from torch import Tensor


def drop_path(branch: Tensor, rate: float, training: bool) -> Tensor:
    """In training, leave the branch [B, ...] out for a share ``rate`` of the samples and scale the others up."""
    if not (training and rate):
        return branch
    keep = 1 - rate
    kept_samples = torch.rand(len(branch), *[1] * (branch.dim() - 1), device=branch.device, dtype=branch.dtype) < keep
    return branch * (kept_samples / keep)
