"""The divisor of the mask losses: targets in the batch, averaged over the processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fssops.structures import MaskTargets

ReduceNumMasks = Callable[[Tensor], Tensor]
"""Takes this process's count, a scalar tensor; returns its mean over all processes."""


def mean_over_ranks(count: Tensor) -> Tensor:
    """Mean over the processes of torch.distributed; the count itself where that is not initialised."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return count
    total = count.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def num_masks(targets: Sequence[MaskTargets], reduce: ReduceNumMasks, device: torch.device) -> Tensor:
    """Number of targets in the batch, averaged over the processes, at least 1: a scalar on ``device``."""
    count = torch.tensor(float(sum(len(t.labels) for t in targets)), device=device)
    return reduce(count).clamp(min=1.0)
