"""Similarity of query and support features over many layers, and the prior mask: what MSANet feeds its decoder.

Source: Iqbal, Safarov, Bang, "MSANet: Multi-similarity and attention guidance for boosting few-shot segmentation",
2022, section 3.2; the prior mask is that of Tian et al., PFENet, TPAMI 2020, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fssops import ops


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners, over the last two axes of [B, C, h, w]; as it is where the size fits."""
    if (x.shape[-2], x.shape[-1]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def positions_above_mean(masks: Tensor, *, exact_mean: bool) -> Tensor:
    """The mask where it is at least the mean of its positive values, 0 elsewhere.

    Args:
        masks: [E, K, h, w], not negative.
        exact_mean: compare with the float32 mean itself, as published: where all positive values are equal, rounding
            of the mean decides how many of them stay. Otherwise the mean may be missed by a millionth, so that they all
            stay.
    """
    if not exact_mean:
        positive = masks > 0
        mean = masks.sum((-2, -1), dtype=torch.float64) / positive.sum((-2, -1)).clamp(min=1)
        return torch.where(masks >= (mean * (1 - 1e-6))[..., None, None], masks, 0)
    masked = torch.zeros_like(masks)
    for rows, out in zip(masks.flatten(0, 1).flatten(1), masked.flatten(0, 1).flatten(1), strict=True):
        positive = rows[rows > 0]
        if len(positive):
            strong = rows >= positive.mean()
            out[strong] = rows[strong]
    return masked


def multi_similarity(queries: Sequence[Tensor], supports: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """For every layer, the mean over kept support positions of the positive part of their cosine.

    Args:
        queries: [R, C, h, w] a layer.
        supports: [R, K, C, h, w] a layer.
        masks: [R, K, h, w] a layer; positions with 0 are not kept.

    Returns:
        [R, K, h, w] a layer; 0 where a shot keeps nothing.
    """
    return ops.cosine_correlation(list(queries), list(supports), list(masks), reduction="mean", eps=1e-5)


def prior_mask(query: Tensor, support: Tensor, masks: Tensor) -> Tensor:
    """The largest cosine over the support's object, stretched to 0..1 in every image.

    Args:
        query: [R, C, h, w], after ReLU.
        support: [R, K, C, h, w], after ReLU.
        masks: [R, K, h, w]; they weigh the support's features.

    Returns:
        [R, K, h, w]; zeros without an object.
    """
    largest = ops.cosine_correlation(
        query, support, masks, reduction="max", divisor="all", relu=False, eps=1e-7, eps_rule="add_to_product"
    )
    low, high = largest.amin((-2, -1), keepdim=True), largest.amax((-2, -1), keepdim=True)
    return (largest - low) / (high - low + 1e-7)
