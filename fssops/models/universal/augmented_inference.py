"""Semantic segmentation averaged over sizes and flips, as MaskFormer and Mask2Former report "multi-scale" numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fssops.structures import ImageBatch, SegmentationResult, SemanticResult


class SemanticModel(Protocol):
    """What is averaged: a model's semantic scores at the output size."""

    def segment(self, batch: ImageBatch, tasks: Sequence[str] | None = None) -> list[SegmentationResult]:
        """One result an image."""
        ...


def resized_to_short_side(image: Tensor, short_side: int, long_side: int) -> Tensor:
    """An image [3, H, W] whose short side is ``short_side``, or less where the long side would exceed its limit.

    Bilinear with antialiasing, rounded to whole values.
    """
    height, width = int(image.shape[1]), int(image.shape[2])
    scale = short_side / min(height, width)
    if max(height, width) * scale > long_side:
        scale = long_side / max(height, width)
    size = (int(height * scale + 0.5), int(width * scale + 0.5))
    resized = F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False, antialias=True)[0]
    return resized.round().clamp(0, 255)


@torch.no_grad()
def augmented_semantic(
    model: SemanticModel,
    image: Tensor,
    output_size: tuple[int, int],
    *,
    short_sides: Sequence[int],
    long_side: int,
    flip: bool = True,
) -> SemanticResult:
    """Plain mean of the scores over sizes, with and without a horizontal flip.

    Published sides: ADE20K 256, 384, .. 896 (limit 3584), models of side 640 320, 480, .. 1120 (4480), Cityscapes
    512, 768, .. 1792 (4096).

    Args:
        model: of any system with semantic inference.
        image: [3, H, W] RGB 0..255; the published evaluation hands over the image already resized for testing.
        output_size: (height, width) of the result.
        short_sides: at least one.
        long_side: limit for the other side.
        flip: also average over mirrored images.

    Raises:
        ValueError: no side is given.
    """
    if not short_sides:
        raise ValueError("augmented_semantic: short_sides must not be empty, got ()")
    total: Tensor | None = None
    count = 0
    for side in short_sides:
        resized = resized_to_short_side(image, side, long_side)
        for mirrored in (False, True) if flip else (False,):
            seen = resized.flip(2) if mirrored else resized
            semantic = model.segment(ImageBatch([seen], output_sizes=[output_size]), ("semantic",))[0].semantic
            assert semantic is not None
            scores = semantic.scores.flip(2) if mirrored else semantic.scores
            total = scores if total is None else total + scores
            count += 1
    assert total is not None
    return SemanticResult(total / count)
