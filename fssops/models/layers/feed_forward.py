"""The two small networks of a transformer: the feed-forward sub-layer and the MLP head."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fssops.models.layers.derived import Linear


def _relu(tokens: Tensor) -> Tensor:
    """ReLU, in place in inference only: a linear layer's output is a view, whose change autograd would replay."""
    return F.relu(tokens) if torch.is_grad_enabled() else F.relu_(tokens)


class FeedForward(nn.Module):
    """``linear2(relu(linear1(x)))`` with dropout between; matrices Xavier-uniform, biases PyTorch's default.

    Args:
        channels: C of input and output.
        hidden: width between.
        dropout: rate after the ReLU, in training.
    """

    def __init__(self, channels: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear1 = Linear(channels, hidden)
        self.linear2 = Linear(hidden, channels)
        self.dropout = dropout
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [..., C] to [..., C]."""
        hidden = _relu(self.linear1(tokens))
        if self.dropout and self.training:
            hidden = F.dropout(hidden, self.dropout)
        out: Tensor = self.linear2(hidden)
        return out


class MLP(nn.Module):
    """Linear layers with ReLU between them and none after the last.

    Args:
        channels: widths from input to output, e.g. (256, 256, 256, 256) for three layers.
    """

    def __init__(self, *channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(n, m) for n, m in pairwise(channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [..., channels[0]] to [..., channels[-1]]."""
        for layer in self.layers[:-1]:
            tokens = _relu(layer(tokens))
        out: Tensor = self.layers[-1](tokens)
        return out
