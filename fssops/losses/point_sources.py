"""Where the random points of Mask2Former's matcher and losses come from.

A criterion asks a :class:`PointSource` and never draws itself: training draws from a generator, a parity test hands
over the points that another implementation drew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fssops import ops
from fssops.structures import MaskTargets


class PointSource(Protocol):
    """Uniform points in [0, 1), last axis (x, y), by prediction head (-1 the final one, 0.. the auxiliary ones)."""

    def matching(self, head: int, image: int, points: int) -> Tensor:
        """[points, 2] for the matcher of one head and image, shared by all pairs."""
        ...

    def oversampled(self, head: int, masks: int, points: int) -> Tensor:
        """[masks, points, 2] of which the most uncertain are kept."""
        ...

    def remainder(self, head: int, masks: int, points: int) -> Tensor:
        """[masks, points, 2] that join them."""
        ...


class RandomPoints:
    """Points from a random generator.

    Args:
        device: where the points are made.
        generator: None takes the device's default generator.
    """

    def __init__(self, device: torch.device, generator: torch.Generator | None = None) -> None:
        self.device, self.generator = device, generator

    def matching(self, head: int, image: int, points: int) -> Tensor:
        """See :class:`PointSource`."""
        return self.oversampled(head, 1, points)[0]

    def oversampled(self, head: int, masks: int, points: int) -> Tensor:
        """See :class:`PointSource`."""
        return ops.uniform_points(masks, points, device=self.device, generator=self.generator)

    remainder = oversampled


class ItemPoints:
    """Points that each image draws from a seed of its own: the same, whichever images share its batch.

    Args:
        device: where the points are made.
        seeds: one an image.
        masks: number of matched masks of each image; of a clip, in all its frames.
    """

    def __init__(self, device: torch.device, seeds: Sequence[int], masks: Sequence[int]) -> None:
        if len(seeds) != len(masks):
            raise ValueError(f"ItemPoints: seeds must be one an image ({len(masks)}), got {len(seeds)}")
        self.device, self.masks = device, list(masks)
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    @staticmethod
    def of_targets(
        device: torch.device, seeds: Sequence[int], targets: Sequence[MaskTargets], queries: int
    ) -> ItemPoints:
        """For a criterion that matches every target to one of ``queries`` queries."""
        frames = [target.masks.shape[1] if target.masks.dim() == 4 else 1 for target in targets]
        matched = [min(queries, len(target.labels)) for target in targets]
        return ItemPoints(device, seeds, [n * t for n, t in zip(matched, frames, strict=True)])

    def matching(self, head: int, image: int, points: int) -> Tensor:
        """See :class:`PointSource`."""
        return ops.uniform_points(1, points, device=self.device, generator=self.generators[image])[0]

    def oversampled(self, head: int, masks: int, points: int) -> Tensor:
        """See :class:`PointSource`."""
        if masks != sum(self.masks):
            raise ValueError(f"ItemPoints: masks must be those of the batch ({sum(self.masks)}), got {masks}")
        drawn = [
            ops.uniform_points(count, points, device=self.device, generator=generator)
            for count, generator in zip(self.masks, self.generators, strict=True)
        ]
        return torch.cat(drawn)

    remainder = oversampled
