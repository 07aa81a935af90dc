"""Where the random points of Mask2Former's matcher and losses come from.

A criterion asks a :class:`PointSource` and never draws itself: training draws from a generator, a parity test hands
over the points that another implementation drew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


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

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, device=self.device, generator=self.generator)

    def matching(self, head: int, image: int, points: int) -> Tensor:
        """See :class:`PointSource`."""
        return self._uniform(points, 2)

    def oversampled(self, head: int, masks: int, points: int) -> Tensor:
        """See :class:`PointSource`."""
        return self._uniform(masks, points, 2)

    def remainder(self, head: int, masks: int, points: int) -> Tensor:
        """See :class:`PointSource`."""
        return self._uniform(masks, points, 2)


class RecordedPoints:
    """Points that were drawn elsewhere.

    Args:
        matching: (head, image) -> [P, 2].
        oversampled: head -> [N, 3 P, 2].
        remainder: head -> [N, P - kept, 2].
    """

    def __init__(
        self,
        matching: Mapping[tuple[int, int], Tensor],
        oversampled: Mapping[int, Tensor],
        remainder: Mapping[int, Tensor],
    ) -> None:
        self._matching, self._oversampled, self._remainder = matching, oversampled, remainder

    @staticmethod
    def _checked(name: str, found: Tensor, shape: tuple[int, ...]) -> Tensor:
        if tuple(found.shape) != shape:
            raise ValueError(f"RecordedPoints: {name} must have shape {shape}, got {tuple(found.shape)}")
        return found

    def matching(self, head: int, image: int, points: int) -> Tensor:
        """See :class:`PointSource`."""
        return self._checked(f"matching[{head}, {image}]", self._matching[head, image], (points, 2))

    def oversampled(self, head: int, masks: int, points: int) -> Tensor:
        """See :class:`PointSource`."""
        return self._checked(f"oversampled[{head}]", self._oversampled[head], (masks, points, 2))

    def remainder(self, head: int, masks: int, points: int) -> Tensor:
        """See :class:`PointSource`."""
        return self._checked(f"remainder[{head}]", self._remainder[head], (masks, points, 2))
