"""Initial values that several parts of the MaskFormer family share."""

from __future__ import annotations

from torch import nn


def xavier_fill(conv: nn.Conv2d) -> None:
    """detectron2's ``c2_xavier_fill``: Kaiming-uniform with a = 1 over the fan-in, bias 0."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def xavier_linear(linear: nn.Linear) -> None:
    """Xavier-uniform weight, bias 0."""
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
