"""Random draws that were made elsewhere, in place of those of training."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def shaped(name: str, drawn: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The draws, if they have a shape.

    Raises:
        ValueError: they have another.
    """
    if tuple(drawn.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(drawn.shape)}")
    return drawn


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

    def matching(self, head: int, image: int, points: int) -> Tensor:
        """See :class:`PointSource`."""
        return shaped(f"RecordedPoints: matching[{head}, {image}]", self._matching[head, image], (points, 2))

    def oversampled(self, head: int, masks: int, points: int) -> Tensor:
        """See :class:`PointSource`."""
        return shaped(f"RecordedPoints: oversampled[{head}]", self._oversampled[head], (masks, points, 2))

    def remainder(self, head: int, masks: int, points: int) -> Tensor:
        """See :class:`PointSource`."""
        return shaped(f"RecordedPoints: remainder[{head}]", self._remainder[head], (masks, points, 2))


class RecordedNoise:
    """Draws that were made elsewhere.

    Args:
        draws: by purpose.
    """

    def __init__(self, draws: Mapping[str, Tensor]) -> None:
        self._draws = dict(draws)

    def _drawn(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        if purpose not in self._draws:
            raise ValueError(f"RecordedNoise: draws must hold {purpose}, got {', '.join(self._draws) or 'nothing'}")
        return shaped(f"RecordedNoise: {purpose}", self._draws[purpose], shape)

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """See :class:`NoiseSource`."""
        return self._drawn(purpose, shape)

    def integers(self, purpose: str, low: Tensor, high: Tensor) -> Tensor:
        """See :class:`NoiseSource`."""
        return self._drawn(purpose, tuple(low.shape)).long()
