"""DETR's transformer decoder, as MaskFormer uses it (Carion et al., ECCV 2020; Cheng et al., NeurIPS 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fssops.models.layers.attention import MultiheadAttention
from fssops.models.layers.derived import Linear, for_products
from fssops.models.layers.feed_forward import MLP, FeedForward
from fssops.models.layers.initialisation import xavier_fill
from fssops.models.layers.position_encoding import PositionEncodingCache
from fssops.models.transformer_decoders.outputs import DecoderOutput


class StandardDecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; dropout, residual and LayerNorm after each."""

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(channels, heads, dropout)
        self.self_norm = nn.LayerNorm(channels)
        self.cross_attn = MultiheadAttention(channels, heads, dropout)
        self.cross_norm = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, hidden, dropout)
        self.ffn_norm = nn.LayerNorm(channels)
        self.dropout = dropout

    def forward(self, queries: Tensor, positions: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None) -> Tensor:
        """One layer.

        Args:
            queries: [B, Q, C].
            positions: [Q, C] query positions.
            key: [B, S, C], position added.
            value: [B, S, C].
            blocked: [B, 1, 1, S] bool, True where the memory is padding, or None.

        Returns:
            [B, Q, C].
        """
        rate, training = self.dropout, self.training
        attended = self.self_attn.self_attention(queries, positions)
        queries = self.self_norm(queries + F.dropout(attended, rate, training))
        attended = self.cross_attn(queries + positions, key, value, blocked)
        queries = self.cross_norm(queries + F.dropout(attended, rate, training))
        out: Tensor = self.ffn_norm(queries + F.dropout(self.ffn(queries), rate, training))
        return out


class StandardTransformerDecoder(nn.Module):
    """Queries start at zero and carry a learnt position; every layer's normalised output feeds the shared heads.

    Args:
        in_channels: channels of the memory.
        num_classes: classes without "no object"; None builds no class head (PerPixelBaseline+).
        num_queries: Q.
        channels: C of the queries.
        mask_channels: E of the mask features.
        heads: attention heads.
        layers: decoder layers, each with predictions.
        hidden: width of the feed-forward sub-layers.
        dropout: rate in training.
        enforce_input_proj: project the memory even when its channels fit.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int | None,
        num_queries: int,
        channels: int = 256,
        mask_channels: int = 256,
        heads: int = 8,
        layers: int = 6,
        hidden: int = 2048,
        dropout: float = 0.1,
        enforce_input_proj: bool = False,
    ) -> None:
        super().__init__()
        self.input_proj: nn.Conv2d | None = None
        if in_channels != channels or enforce_input_proj:
            self.input_proj = nn.Conv2d(in_channels, channels, 1)
            xavier_fill(self.input_proj)
        self.layers = nn.ModuleList(StandardDecoderLayer(channels, heads, hidden, dropout) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(channels)
        self.query_embed = nn.Embedding(num_queries, channels)
        self.class_embed = None if num_classes is None else Linear(channels, num_classes + 1)
        self.mask_embed = MLP(channels, channels, channels, mask_channels)
        self._positions = PositionEncodingCache(channels)

    def forward(
        self, memory: Tensor, size: tuple[int, int], padding: Tensor | None = None, *, auxiliary: bool = True
    ) -> DecoderOutput:
        """Decode.

        Args:
            memory: [B, h * w, C_in].
            size: (h, w).
            padding: [B, h * w] bool, True = padding, or None.
            auxiliary: return every layer's predictions instead of the last one's only.
        """
        if self.input_proj is not None:
            memory = F.linear(memory, self.input_proj.weight.flatten(1), self.input_proj.bias)
        key = for_products(memory + self._positions(size, memory.device).to(memory.dtype))
        memory = for_products(memory)
        blocked = None if padding is None else padding[:, None, None]
        positions = self.query_embed.weight
        queries = torch.zeros_like(positions).expand(len(memory), -1, -1)
        states = []
        for layer in self.layers:
            queries = layer(queries, positions, key, memory, blocked)
            if auxiliary:
                states.append(queries)
        normed = self.decoder_norm(torch.stack(states) if auxiliary else queries[None])
        embeddings = self.mask_embed(normed)
        if self.class_embed is None:
            return DecoderOutput(normed.new_zeros((*normed.shape[:3], 0)), embeddings)
        return DecoderOutput(self.class_embed(normed), embeddings)
