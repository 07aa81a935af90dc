"""Hungarian matching of predictions to targets (Carion et al., DETR, ECCV 2020, equation 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
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


def assign(costs: Sequence[Tensor], bad_term: Callable[[int], str] | None = None) -> list[Match]:
    """The pairs of least total cost of each matrix [Q, G], on their device; all matrices in one call.

    Args:
        costs: the matrices.
        bad_term: says which term of a matrix is NaN or infinite, and where it comes from.

    Raises:
        ValueError: a cost is NaN or infinite; training has diverged.
    """
    try:
        return [Match(queries, targets) for queries, targets in ops.assign(costs)]
    except ValueError as error:
        finite = [bool(torch.isfinite(cost).all()) for cost in costs]
        if bad_term is None or all(finite):
            raise
        raise ValueError(f"matcher: costs must be finite, got {bad_term(finite.index(False))}") from error
