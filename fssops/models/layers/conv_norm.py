"""Convolution, GroupNorm and ReLU as one block, as the FPN-like pixel decoders stack them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32
"""Groups of every GroupNorm in the pixel decoders."""


def xavier_fill(conv: nn.Conv2d) -> None:
    """detectron2's ``c2_xavier_fill``: Kaiming-uniform with a = 1 over the fan-in, bias 0."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class ConvNorm(nn.Module):
    """Convolution without bias, GroupNorm(32), and ReLU if asked for; the size is kept.

    Args:
        in_channels: input channels.
        out_channels: output channels, divisible by 32.
        kernel_size: odd.
        relu: whether a ReLU follows.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, relu: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.GroupNorm(GROUPS, out_channels)
        self.relu = relu
        xavier_fill(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] to [B, out, h, w]."""
        x = self.norm(self.conv(x))
        return F.relu_(x) if self.relu else x
