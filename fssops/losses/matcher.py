"""Hungarian matching of predictions to targets (Carion et al., DETR, ECCV 2020, equation 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fssops import ops


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


def assign(costs: Sequence[Tensor]) -> list[Match]:
    """The pairs of least total cost of each matrix [Q, G], on their device; all matrices in one call.

    Raises:
        ValueError: a cost is NaN or infinite; training has diverged.
    """
    return [Match(queries, targets) for queries, targets in ops.assign(costs)]
