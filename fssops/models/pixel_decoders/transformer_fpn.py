"""MaskFormer's pixel decoder for panoptic segmentation: DETR's encoder on the coarsest map, then the FPN."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from fssops.models.layers.attention import MultiheadAttention
from fssops.models.layers.derived import Conv2d
from fssops.models.layers.feed_forward import FeedForward
from fssops.models.layers.initialisation import xavier_fill
from fssops.models.layers.position_encoding import PositionEncodingCache
from fssops.models.pixel_decoders.features import PixelFeatures
from fssops.models.pixel_decoders.fpn import FPNPixelDecoder, as_tokens
from fssops.models.pixel_decoders.ms_deform import resized_padding


class TransformerEncoderLayer(nn.Module):
    """Self-attention and feed-forward; dropout, residual and LayerNorm after each (Carion et al., DETR, 2020)."""

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(channels, heads, dropout)
        self.norm1 = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, hidden, dropout)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = dropout

    def forward(self, tokens: Tensor, positions: Tensor, blocked: Tensor | None) -> Tensor:
        """Tokens [B, S, C] to the same; positions [S, C] go to query and key; blocked [B, 1, 1, S] bool or None."""
        attended = self.self_attn.self_attention(tokens, positions, blocked)
        tokens = self.norm1(tokens + F.dropout(attended, self.dropout, self.training))
        out: Tensor = self.norm2(tokens + F.dropout(self.ffn(tokens), self.dropout, self.training))
        return out


class TransformerFPNPixelDecoder(FPNPixelDecoder):
    """:class:`FPNPixelDecoder` whose coarsest map first passes a transformer encoder; its output is the memory.

    Args:
        in_channels: channels of "res2".."res5".
        channels: C inside.
        mask_channels: E of the mask features.
        heads: attention heads.
        layers: encoder layers.
        hidden: width of the feed-forward sub-layers.
        dropout: rate in training.
    """

    def __init__(
        self,
        in_channels: Mapping[str, int],
        *,
        channels: int = 256,
        mask_channels: int = 256,
        heads: int = 8,
        layers: int = 6,
        hidden: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        nn.Module.__init__(self)
        self.memory_channels = channels
        self.input_proj = Conv2d(in_channels["res5"], channels, 1)
        self.encoder = nn.ModuleList(TransformerEncoderLayer(channels, heads, hidden, dropout) for _ in range(layers))
        self._build(in_channels, channels, channels, mask_channels)
        xavier_fill(self.input_proj)
        self._positions = PositionEncodingCache(channels)

    def forward(self, features: Mapping[str, Tensor], padding: Tensor | None = None) -> PixelFeatures:
        """Decode.

        Args:
            features: "res2".."res5" of a backbone, [B, C_i, h_i, w_i].
            padding: [B, H, W] bool of any size, True = padding; None attends to padding, as published.

        Returns:
            mask features, and the encoder's output as memory.
        """
        projected = self.input_proj(features["res5"])
        batch, channels, height, width = projected.shape
        positions = self._positions((height, width), projected.device).to(projected.dtype)
        blocked = None if padding is None else resized_padding(padding, (height, width))[:, None, None]
        tokens = as_tokens(projected)
        for layer in self.encoder:
            tokens = layer(tokens, positions, blocked)
        coarsest = tokens.transpose(1, 2).reshape(batch, channels, height, width)
        return PixelFeatures(self.top_down(features, coarsest), [tokens], [(height, width)])
