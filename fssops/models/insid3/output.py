"""From the positions that each way claims to the share of each class at each pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fssops.models.backbones.vit import upsample_to_image
from fssops.models.insid3.refinement import refine


def class_shares(
    scores: Tensor,
    grid: tuple[int, int],
    patch: int,
    image_size: tuple[int, int],
    size: tuple[int, int],
    *,
    hard: bool,
    colours: Tensor | None,
) -> Tensor:
    """Share of the background and each way at each pixel; a position belongs to the way of the highest score there.

    Args:
        scores: [N, P] of each way at each position, -inf where it is not.
        grid: (h, w), its positions.
        patch: pixels of a position's side.
        image_size: (H, W) of the image that was encoded, at most (h * patch, w * patch).
        size: (H, W) wanted.
        hard: whether pixels are decided at the image's size before they are resized to another.
        colours: [3, H, W] of the image in 0..1, to refine outlines by; None: they are not refined.

    Returns:
        [1 + N, H, W] float32 of ``size``.
    """
    best = scores.argmax(0) + 1
    best[scores.amax(0) == -torch.inf] = 0
    shares = _one_hot(best.view(grid), len(scores))
    if hard or colours is not None or image_size != (grid[0] * patch, grid[1] * patch):
        shares = upsample_to_image(shares, image_size, patch)
    if colours is not None:
        shares = refine(shares[0], colours)[None]
    elif hard and size != image_size:
        shares = _one_hot(shares[0].argmax(0), len(scores))
    resized: Tensor = F.interpolate(shares, size=size, mode="bilinear", align_corners=False)
    return resized[0]


def _one_hot(labels: Tensor, ways: int) -> Tensor:
    """[1, 1 + N, h, w] float32 of labels [h, w]."""
    return F.one_hot(labels, 1 + ways).permute(2, 0, 1)[None].float()
