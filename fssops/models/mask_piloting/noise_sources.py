"""Where the random numbers of piloted queries come from.

Whoever builds piloted queries asks a :class:`NoiseSource` and never draws itself: training draws from a generator, a
parity test hands over what another implementation drew. Every copy of a target has draws of its own; copies are listed
group first, then image, then target.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class NoiseSource(Protocol):
    """Draws by what they are for; all on the device of the model, ``uniform`` ones in [0, 1)."""

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Float32 [shape] for a purpose.

        The purposes: ``cells_<layer>`` [copies, S] or [copies, M, S] for the point noise of a decoder layer;
        ``dropped_<level>`` [copies, S] for points_MAE; ``offset`` [copies, 2] for shift; ``scaled`` [copies] for the
        choice of the copies that are enlarged; ``upright`` [copies] for the direction of a patch; ``relabelled``
        [copies] for the choice of the copies with a wrong class; ``content`` [copies, C].
        """
        ...

    def integers(self, purpose: str, low: Tensor, high: Tensor) -> Tensor:
        """Int64 of the shape of ``low``, each in low..high, both included.

        The purposes: ``labels`` [chosen copies], classes; ``short_side``, ``row``, ``column`` [copies] of a patch.
        """
        ...


class RandomNoise:
    """Draws from a random generator.

    Args:
        device: where they are made.
        generator: None takes the device's default generator.
    """

    def __init__(self, device: torch.device, generator: torch.Generator | None = None) -> None:
        self.device, self.generator = device, generator

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """See :class:`NoiseSource`."""
        return torch.rand(*shape, device=self.device, generator=self.generator)

    def integers(self, purpose: str, low: Tensor, high: Tensor) -> Tensor:
        """See :class:`NoiseSource`."""
        # Double precision keeps every integer that occurs equally likely to 1e-9; no draw waits for the device.
        drawn = torch.rand(low.shape, dtype=torch.float64, device=self.device, generator=self.generator)
        return torch.minimum(low + (drawn * (high - low + 1)).long(), high)
