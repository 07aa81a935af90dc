"""Hungarian matching of predictions to targets (Carion et al., DETR, ECCV 2020, equation 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass
class Match:
    """The pairs of one image, by ascending query.

    Attributes:
        queries: [n] int64.
        targets: [n] int64; n = min(Q, G).
    """

    queries: Tensor
    targets: Tensor


def class_cost(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the probability of each target's class: class_logits [Q, C + 1], labels [G] -> [Q, G]."""
    return -class_logits.float().softmax(-1)[:, labels]


def assign(cost: Tensor) -> Match:
    """The pairs of least total cost [Q, G]; on the device of ``cost``.

    Raises:
        ValueError: the cost holds NaN or infinity; training has diverged.
    """
    if not torch.isfinite(cost).all():
        raise ValueError(
            f"assign: cost must be finite, got {int((~torch.isfinite(cost)).sum())} NaN or infinite entries"
            f" of shape {tuple(cost.shape)}; have the losses diverged?"
        )
    queries, targets = linear_sum_assignment(cost.cpu().numpy())
    return Match(torch.as_tensor(queries, device=cost.device), torch.as_tensor(targets, device=cost.device))
