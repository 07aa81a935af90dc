"""The plain PyTorch definition of masked average pooling; see :func:`fssops.ops.masked_average_pooling`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RESIZE_RULES = ("none", "nearest", "bilinear", "bilinear_align_corners", "upsample_features")
"""How masks of another resolution meet the features; the index is what the native operator is given."""


def masked_average_pooling(features: Tensor, masks: Tensor, *, eps: float, resize: str = "none") -> Tensor:
    """Prototypes [B, N, C] of features [B, C, h, w] under masks [B, N, H, W]; materialises what it needs."""
    size = features.shape[-2:]
    masks = masks.to(features.dtype)
    if resize == "upsample_features":
        if 0 not in features.shape[:2]:  # interpolate refuses empty batches and channels
            features = F.interpolate(features, size=masks.shape[-2:], mode="bilinear", align_corners=False)
        else:
            features = features.new_zeros((*features.shape[:2], *masks.shape[-2:]))
    elif resize != "none" and 0 not in masks.shape[:2]:
        if resize == "nearest":
            masks = F.interpolate(masks, size=size, mode="nearest")
        else:
            masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=resize == "bilinear_align_corners")
    elif resize != "none":
        masks = masks.new_zeros((*masks.shape[:2], *size))
    total = torch.einsum("bchw,bnhw->bnc", features, masks)
    return total / (masks.sum(dim=(-2, -1))[..., None] + eps)
