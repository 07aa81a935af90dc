"""Focal and dice loss of masks over all pixels, without keeping anything of full size.

MaskFormer compares upsampled logits with the targets at every pixel. Composed of PyTorch functions that keeps about
ten full-size maps a mask and prediction head for the backward pass; here a mask's maps live only while it is visited,
and the backward pass forms them again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

ALPHA = 0.25
"""Weight of foreground pixels in the focal loss; background pixels weigh 1 - ALPHA. The exponent is 2."""

_CHUNK_PIXELS = 1 << 20
"""Pixels visited at a time; some ten maps of this many floats are alive at once."""


def _upsampled(logits: Tensor, masks: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Logits [n, H, W] at the padded size and targets of that size, float."""
    x = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    target = x.new_zeros(x.shape)
    target[:, : masks.shape[1], : masks.shape[2]] = masks
    return x, target


class _DenseMaskLoss(torch.autograd.Function):
    """Focal [N] and dice [N] of logits [N, h, w] against bool masks [N, H', W'], compared at ``size``."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        focal, dice = logits.new_zeros(len(logits)), logits.new_zeros(len(logits))
        sums = logits.new_zeros((2, len(logits)))  # 2 sum(p t) + 1 and sum p + sum t + 1
        step = max(1, _CHUNK_PIXELS // (size[0] * size[1]))
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            x, target = _upsampled(logits[part], masks[part], size)
            p = x.sigmoid()
            sums[0, part] = 2 * (p * target).flatten(1).sum(1) + 1
            sums[1, part] = p.flatten(1).sum(1) + target.flatten(1).sum(1) + 1
            wrong = p + target - 2 * p * target  # 1 - p_t
            signed = x * (2 * target - 1)
            weight = (1 - ALPHA) + (2 * ALPHA - 1) * target
            focal[part] = (weight * wrong * wrong * F.softplus(-signed)).flatten(1).mean(1)
        dice = 1 - sums[0] / sums[1]
        ctx.save_for_backward(logits, masks, sums)
        ctx.size = size
        return focal, dice

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_focal: Tensor, grad_dice: Tensor) -> tuple[Tensor | None, None, None]:
        logits, masks, sums = ctx.saved_tensors
        size = ctx.size
        grad = torch.empty_like(logits)
        pixels = size[0] * size[1]
        step = max(1, _CHUNK_PIXELS // pixels)
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            x, target = _upsampled(logits[part], masks[part], size)
            p = x.sigmoid()
            sign = 2 * target - 1
            wrong = p + target - 2 * p * target
            weight = (1 - ALPHA) + (2 * ALPHA - 1) * target
            # d focal / d x = -sign weight (1 - p_t)^2 (2 p_t softplus(-sign x) + 1 - p_t)
            slope = 2 * (1 - wrong) * F.softplus(-sign * x) + wrong
            full = (-grad_focal[part] / pixels)[:, None, None] * sign * weight * wrong * wrong * slope
            # d dice / d p = (2 A + 1) / D^2 - 2 t / D, with D the denominator
            share = (sums[0, part] / sums[1, part] ** 2)[:, None, None] - 2 * target / sums[1, part, None, None]
            full += grad_dice[part, None, None] * share * p * (1 - p)
            grad[part] = torch.ops.aten.upsample_bilinear2d_backward(
                full[:, None], list(size), [len(full), 1, *logits.shape[1:]], False
            )[:, 0]
        return grad, None, None


def dense_mask_loss(logits: Tensor, masks: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Sigmoid focal loss (mean over pixels) and dice loss of each mask.

    focal = alpha_t (1 - p_t)^2 * cross-entropy, dice = 1 - (2 sum(p t) + 1) / (sum p + sum t + 1), over the pixels of
    the padded image, padding counted as background.

    Args:
        logits: [N, h, w] float32; upsampled bilinearly (``align_corners=False``). Gets a gradient, once.
        masks: [N, H', W'] bool, H' <= H, W' <= W.
        size: (H, W) of the padded image.

    Returns:
        two [N].
    """
    focal, dice = _DenseMaskLoss.apply(logits, masks, size)
    return focal, dice


def dense_mask_cost(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of each of Q predictions against each of G targets, over P pixels.

    Args:
        logits: [Q, P] float32.
        targets: [G, P] float32, 0 or 1.

    Returns:
        two [Q, G].
    """
    p = logits.sigmoid()
    foreground = ALPHA * (1 - p) ** 2 * F.softplus(-logits)
    background = (1 - ALPHA) * p**2 * F.softplus(logits)
    focal = ((foreground - background) @ targets.T + background.sum(1)[:, None]) / logits.shape[1]
    overlap = 2 * (p @ targets.T)
    total = p.sum(1)[:, None] + targets.sum(1)[None]
    return focal, 1 - (overlap + 1) / (total + 1)
