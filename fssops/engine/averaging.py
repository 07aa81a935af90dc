"""A moving average of the weights in training, which often scores better than the weights of the last step."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """A copy of a model whose weights follow it: ``average += (1 - decay) * (weight - average)`` after each update.

    The decay begins at a half or less and rises, ``min(decay, (1 + n) / (10 + n))`` after n updates, so that an average
    of a short training is not one of its beginning. Running statistics of normalisation, which go with the weights, are
    averaged too; other buffers are the model's own.

    Args:
        model: before it is compiled or trained.
        decay: in (0, 1).

    Attributes:
        model: the copy.
        updates: n.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.updates = copy.deepcopy(model).eval().requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of ``model`` after one more update."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for (name, average), buffer in zip(self.model.named_buffers(), model.buffers(), strict=True):
            if name.endswith(("running_mean", "running_var")):
                average.lerp_(buffer, 1 - decay)
            else:
                average.copy_(buffer)

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Go on from a state dict of :attr:`model` after ``updates`` updates."""
        self.model.load_state_dict(state)
        self.updates = updates
