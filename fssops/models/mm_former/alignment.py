"""Feature alignment of MM-Former: channels gated by their own image, tokens of one image attending to the other's.

Source: Jiao et al., "Mask matching transformer for few-shot segmentation", NeurIPS 2022, section 3.2, and its code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssops.models.layers.attention import MultiheadAttention
from fssops.models.layers.derived import for_products
from fssops.models.layers.feed_forward import FeedForward


def channel_gates(features: Tensor) -> Tensor:
    """The gate of every channel of an image: sigmoid of its mean, weighted by where the image is strong.

    Positions weigh by the softmax of their mean over channels.

    Args:
        features: [B, C, h, w], best channels-last.

    Returns:
        [B, C] in (0, 1).
    """
    weights = features.mean(1).flatten(1).softmax(1)  # [B, h w]
    rows = features.permute(0, 2, 3, 1).flatten(1, 2)
    return (weights[:, None] @ rows)[:, 0].sigmoid()


def projected(features: Tensor, gates: Tensor, weight: Tensor) -> Tensor:
    """Self-alignment and the 1x1 projection after it, as one product: the gates scale the columns of the matrix.

    Args:
        features: [B, C, h, w], best channels-last.
        gates: [B, C] of :func:`channel_gates`.
        weight: [O, C, 1, 1], without bias.

    Returns:
        [B, O, h, w], channels-last.
    """
    rows = features.permute(0, 2, 3, 1).flatten(1, 2)  # [B, h w, C], no copy of channels-last features
    matrices = gates[:, :, None] * weight.flatten(1).t()  # [B, C, O]
    out = torch.bmm(rows, matrices.to(rows.dtype))
    return out.view(len(out), *features.shape[2:], -1).permute(0, 3, 1, 2)


def tokens_of(features: Tensor) -> Tensor:
    """[B, C, h, w] as [B, h * w, C]; no copy of channels-last features."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


def shortened(features: Tensor, short_side: int) -> Tensor:
    """Features [B, C, h, w] resized so that the shorter side is ``short_side``, bilinear, no antialiasing.

    The longer side is rounded down; smaller maps are enlarged.
    """
    height, width = int(features.shape[2]), int(features.shape[3])
    shorter = min(height, width)
    size = (height * short_side // shorter, width * short_side // shorter)
    if size == (height, width):
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


class CrossAlignmentLayer(nn.Module):
    """Attention to another image's tokens and feed-forward; residual and LayerNorm after each."""

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attn = MultiheadAttention(channels, heads)
        self.attn_norm = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, hidden)
        self.ffn_norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, positions: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Tokens [B, S, C] with positions [S, C] or [B, S, C]; keys (position added) and values [B, T, C]."""
        tokens = self.attn_norm(tokens + self.attn(tokens + positions, key, value))
        out: Tensor = self.ffn_norm(tokens + self.ffn(tokens))
        return out


class CrossAlignment(nn.Module):
    """Layers that align an image's tokens with another image; both layers read the same tokens of the other image.

    A token meets no other token of its own image, so any subset of tokens may be aligned alone.

    Args:
        channels: C.
        heads: attention heads.
        layers: number of layers.
        hidden: width of the feed-forward sub-layers.
    """

    def __init__(self, channels: int, heads: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CrossAlignmentLayer(channels, heads, hidden) for _ in range(layers))

    def forward(self, tokens: Tensor, positions: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Align tokens [B, S, C]; see :class:`CrossAlignmentLayer`."""
        key, value = for_products(key), for_products(value)
        for layer in self.layers:
            tokens = layer(tokens, positions, key, value)
        return tokens
