"""The operators that the mask losses call, in one place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples [N, C, P] of maps [N, C, H, W] at points [N, P, 2], (x, y) in 0..1, zeros outside."""
    grid = 2.0 * points[:, None] - 1.0
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False).squeeze(2)


def pairwise_mask_cost(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean binary cross-entropy and dice loss of each of Q predictions against each of G targets.

    Args:
        logits: [Q, P] float32.
        targets: [G, P] float32 in [0, 1].

    Returns:
        two [Q, G]: mean over P of ``softplus(x) - x t``, and ``1 - (2 sum(p t) + 1) / (sum p + sum t + 1)``.
    """
    cross_entropy = (F.softplus(logits).sum(1)[:, None] - logits @ targets.T) / logits.shape[1]
    probabilities = logits.sigmoid()
    overlap = 2 * (probabilities @ targets.T)
    total = probabilities.sum(1)[:, None] + targets.sum(1)[None]
    return cross_entropy, 1 - (overlap + 1) / (total + 1)


def point_mask_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean binary cross-entropy [N] and dice loss [N] of logits [N, P] against targets [N, P] in [0, 1]."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    probabilities = logits.sigmoid()
    overlap = 2 * (probabilities * targets).sum(1)
    total = probabilities.sum(1) + targets.sum(1)
    return cross_entropy, 1 - (overlap + 1) / (total + 1)


def most_uncertain(logits: Tensor, count: int) -> Tensor:
    """Indices [N, count] of the logits [N, P] nearest to 0, in no order."""
    return torch.topk(logits.abs(), count, dim=1, largest=False, sorted=False).indices
