"""The dataclasses that cross layers; every shape is written here once.

Shape letters, used in the whole package: B batch, N ways, K shots, Q queries,
C channels, H W image size, h w feature size, L levels, P points, M heads,
D channels per head, S flattened tokens, T frames.

Label maps hold 0 for the background, 1..N for the ways of an episode (or the
class index in a fixed-class task) and ``IGNORE`` where no truth is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

IGNORE = 255
"""Label of pixels that neither train nor count."""

_Batch = TypeVar("_Batch")


def move_to(batch: _Batch, device: torch.device | str, non_blocking: bool = False) -> _Batch:
    """Return a copy of a dataclass with every tensor on ``device``; lists of tensors are moved too."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=non_blocking)
        if isinstance(value, list):
            return [moved(item) for item in value]
        if hasattr(value, "__dataclass_fields__"):
            return move_to(value, device, non_blocking)
        return value

    changes = {f.name: moved(getattr(batch, f.name)) for f in fields(batch)}  # type: ignore[arg-type]
    return replace(batch, **changes)  # type: ignore[type-var]


@dataclass
class Episode:
    """One few-shot task: N ways, K support images a way, Q query images, all of one size.

    Attributes:
        support_images: [N, K, 3, H, W] float32, normalised as the model expects.
        support_foreground: [N, K, H, W] float32 in [0, 1]; 1 where the pixel belongs to the way.
        support_background: [N, K, H, W] float32 in [0, 1]; 1 where the pixel is background. A pixel may be
            neither (another way of the episode, the doubtful part of a box or scribble).
        query_images: [Q, 3, H, W] float32.
        query_labels: [Q, H, W] int64; 0 background, n = way n (1-based), ``IGNORE``.
        classes: [N] int64, ids of the data set's classes, in the order of the ways.
        support_names: N lists of K image names; for reports and reproducibility.
        query_names: Q image names.
        index: position of the episode in its list.
    """

    support_images: Tensor
    support_foreground: Tensor
    support_background: Tensor
    query_images: Tensor
    query_labels: Tensor
    classes: Tensor
    support_names: list[list[str]] = field(default_factory=list)
    query_names: list[str] = field(default_factory=list)
    index: int = 0


@dataclass
class FewShotBatch:
    """B episodes of equal N, K, Q, H, W, stacked.

    Attributes: those of :class:`Episode` with a leading B; the name lists are lists over B.
    """

    support_images: Tensor  # [B, N, K, 3, H, W]
    support_foreground: Tensor  # [B, N, K, H, W]
    support_background: Tensor  # [B, N, K, H, W]
    query_images: Tensor  # [B, Q, 3, H, W]
    query_labels: Tensor  # [B, Q, H, W]
    classes: Tensor  # [B, N]
    support_names: list[list[list[str]]] = field(default_factory=list)
    query_names: list[list[str]] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)

    @staticmethod
    def stack(episodes: Sequence[Episode]) -> FewShotBatch:
        """Stack episodes of equal shapes; the collate function of few-shot loaders."""
        if not episodes:
            raise ValueError("FewShotBatch.stack: episodes must not be empty, got 0")
        return FewShotBatch(
            support_images=torch.stack([e.support_images for e in episodes]),
            support_foreground=torch.stack([e.support_foreground for e in episodes]),
            support_background=torch.stack([e.support_background for e in episodes]),
            query_images=torch.stack([e.query_images for e in episodes]),
            query_labels=torch.stack([e.query_labels for e in episodes]),
            classes=torch.stack([e.classes for e in episodes]),
            support_names=[e.support_names for e in episodes],
            query_names=[e.query_names for e in episodes],
            indices=[e.index for e in episodes],
        )
