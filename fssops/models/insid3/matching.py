"""Where a target resembles the references: masks at feature size, prototypes, and the search in both directions.

Nothing of the size positions x positions is formed: best matches come from
:func:`fssops.ops.cosine_correlation`, which reduces its products as they are made.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fssops import ops
from fssops.models.insid3.debiasing import SHORTEST, unit

FALLBACK_QUANTILE = 0.9
_TIED_ROWS = 256


def feature_masks(masks: Tensor, patch: int) -> Tensor:
    """Masks at the size of the features: more than half by bilinear reading, else nearest, else the central cell.

    Args:
        masks: [n, H, W] float, 1 inside.
        patch: pixels of a cell's side; the masks are padded with 0 to whole cells.

    Returns:
        [n, h, w] bool; a mask without any pixel inside stays empty.
    """
    height, width = masks.shape[-2:]
    padded = F.pad(masks, (0, -width % patch, 0, -height % patch))[:, None]
    size = (padded.shape[-2] // patch, padded.shape[-1] // patch)
    small = F.interpolate(padded, size=size, mode="bilinear", align_corners=False)[:, 0] > 0.5
    nearest = F.interpolate(padded, size=size, mode="nearest")[:, 0] > 0.5
    small = torch.where(small.flatten(1).any(1)[:, None, None], small, nearest)
    for number in (~small.flatten(1).any(1)).nonzero()[:, 0].tolist():
        inside = (masks[number] > 0).nonzero()
        if len(inside):
            row, column = (inside.float().mean(0) / patch).long().tolist()
            small[number, row, column] = True
    return small


def prototypes(references: Tensor, foreground: Tensor) -> Tensor:
    """Unit mean, over the shots that show the class, of the mean feature inside each mask.

    Args:
        references: [..., K, S, D] unit features.
        foreground: [..., K, S] bool.

    Returns:
        [..., D]; 0 where no shot shows the class.
    """
    weights = foreground.to(references.dtype)
    area = weights.sum(-1, keepdim=True)
    means = (weights / area.clamp(min=1))[..., None, :] @ references  # [..., K, 1, D]
    shots = (area > 0).sum(-2).clamp(min=1)
    return unit(means[..., 0, :].sum(-2) / shots)


def forward_matches(similarity: Tensor) -> Tensor:
    """Positions that lie on the prototype's side; where none does, the best tenth.

    Args:
        similarity: [P] cosines with the prototype.

    Returns:
        [P] bool.
    """
    matches = similarity > 0
    return matches if bool(matches.any()) else similarity > similarity.quantile(FALLBACK_QUANTILE)


def backward_votes(target: Tensor, references: Tensor, foreground: Tensor, compared: Tensor) -> Tensor:
    """For each target position, how many shots have their best match inside the mask; ties go to the first position.

    Args:
        target: [P, D] unit features.
        references: [K, S, D] unit features.
        foreground: [K, S] bool, at least one position of each shot.
        compared: [K, S] bool: positions that matches are sought among, the foreground's included.

    Returns:
        [P] int64.
    """
    shots = len(references)
    masks = torch.stack([foreground, compared & ~foreground])
    best = ops.cosine_correlation(
        target[None, :, None].permute(0, 3, 1, 2),
        references[None, :, :, None].permute(0, 1, 4, 2, 3),
        masks[None, ..., None],
        reduction="max",
        relu=False,
        eps=SHORTEST,
        eps_rule="clamp_norms",
    )  # [1, 2, K, P, 1]
    inside, outside = best[0, 0, ..., 0], best[0, 1, ..., 0]
    votes = (inside > outside) | ~masks[1].any(1)[:, None]
    tied = (inside == outside) & masks[1].any(1)[:, None]
    for shot in range(shots) if bool(tied.any()) else ():
        for places in tied[shot].nonzero()[:, 0].split(_TIED_ROWS):
            products = (target[places] @ references[shot].T).masked_fill(~compared[shot], -torch.inf)
            votes[shot, places] = foreground[shot][products.argmax(1)]
    return votes.sum(0)
