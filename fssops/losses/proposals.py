"""Losses of proposals that are compared with one object: overlap, dice, and the ranking of similarities.

Source: Jiao et al., "Mask matching transformer for few-shot segmentation" (MM-Former), NeurIPS 2022, section 3.4, and
its code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-7


def upsampled(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of [B, Q, h, w], pixel centres at half integers."""
    return F.interpolate(masks, size=size, mode="bilinear", align_corners=False)


def _gathered(weights: Tensor, size: tuple[int, int]) -> Tensor:
    """What each pixel of a map of ``size`` adds up to when it is upsampled and weighed: [B, H, W] -> [B, h, w].

    This is the transpose of :func:`upsampled`, so sums over upsampled masks need none of them upsampled.
    """
    full = [int(n) for n in weights.shape[1:]]
    gathered: Tensor = torch.ops.aten.upsample_bilinear2d_backward(
        weights[:, None], full, [len(weights), 1, *size], False
    )
    return gathered.squeeze(1)


@torch.no_grad()
def soft_iou(masks: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    r"""Overlap of every upsampled mask with the object of its image, :math:`\sum m y / (\sum y + \sum m - \sum m y)`.

    Args:
        masks: [B, Q, h, w] probabilities.
        target: [B, H, W] float, 1 on the object.
        valid: [B, H, W] float, 0 where pixels do not count; None counts all.

    Returns:
        [B, Q] float32, no gradient.
    """
    size = (int(masks.shape[2]), int(masks.shape[3]))
    counted = torch.ones_like(target) if valid is None else valid
    inside = target * counted
    both = torch.stack([_gathered(inside, size), _gathered(counted, size)], dim=1).flatten(2)  # [B, 2, h w]
    with torch.autocast(masks.device.type, enabled=False):  # the area of an image is infinite in float16
        overlap, area = (masks.flatten(2).float() @ both.transpose(1, 2)).unbind(2)
    return overlap / (inside.sum((1, 2))[:, None] + area - overlap + _EPS)


def dice_loss(foreground: Tensor, target: Tensor, valid: Tensor | None = None, *, squash: bool = False) -> Tensor:
    r"""Dice of background and foreground added up, mean over images.

    :math:`1 - 2 \sum t p / \max(\sum p^2 + \sum t^2, 10^{-8})` for each of the two, with p = ``foreground`` or one
    minus it.

    Args:
        foreground: [B, H, W], near [0, 1].
        target: [B, H, W] float, 1 on the object.
        valid: [B, H, W] float, 0 where pixels do not count; None counts all.
        squash: put the sigmoid of both in their place first, though they are probabilities, as published.
    """
    shares = torch.stack([1 - foreground, foreground], dim=1).float()
    wanted = torch.stack([1 - target, target], dim=1)
    if squash:
        shares = shares.sigmoid()
    if valid is not None:
        shares, wanted = shares * valid[:, None], wanted * valid[:, None]
    overlap = (shares * wanted).sum((2, 3))
    total = shares.square().sum((2, 3)) + wanted.square().sum((2, 3))
    return (1 - 2 * overlap / total.clamp(min=1e-8)).sum(1).mean()


def ranked_similarities(similarity: Tensor, overlap: Tensor) -> tuple[Tensor, Tensor]:
    """The similarities of the least and of the most overlapping proposal, stretched to 0..1 in every image.

    Args:
        similarity: [B, Q].
        overlap: [B, Q].

    Returns:
        [B, 2] float32 with gradients through the stretching; and the two queries [B, 2].
    """
    similarity = similarity.float()
    low, high = similarity.amin(1, keepdim=True), similarity.amax(1, keepdim=True)
    stretched = (similarity - low) / (high - low + 1e-8)
    extremes = torch.stack([overlap.argmin(1), overlap.argmax(1)], dim=1)
    return stretched.gather(1, extremes), extremes


def ranking_loss(ranked: Tensor, floor: float = 0.0) -> Tensor:
    """Binary cross-entropy that wants 0 of the first and 1 of the second column of :func:`ranked_similarities`.

    Args:
        ranked: [B, 2] in [0, 1].
        floor: values are first moved into ``floor``..1 - ``floor``. With 0, as published, the wrong extreme costs 100
            and its gradient is huge.
    """
    with torch.autocast(ranked.device.type, enabled=False):  # on a GPU autocast refuses the function
        ranked = ranked.float()
        wanted = torch.zeros_like(ranked)
        wanted[:, 1] = 1.0
        return F.binary_cross_entropy(floor + (1 - 2 * floor) * ranked, wanted)
