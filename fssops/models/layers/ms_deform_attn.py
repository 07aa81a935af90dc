"""Multi-scale deformable attention as a layer (Zhu et al., Deformable DETR, ICLR 2021, equation 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fssops import ops
from fssops.models.layers.derived import DerivingModule, Linear, autocast_type, cast
from fssops.models.layers.initialisation import xavier_linear


class MSDeformAttn(DerivingModule):
    """Each query samples P points of every level, around its reference point, and sums them with its own weights.

    Args:
        channels: C.
        heads: M, a divisor of C.
        levels: L.
        points: P a level and head.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``.
    """

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"MSDeformAttn: heads must divide channels {channels}, got {heads}")
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = Linear(channels, channels)
        self.output_proj = Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start on a ring: head m looks in direction 2 pi m / M, point p at p cells; weights start equal."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        ring = torch.stack((angles.cos(), angles.sin()), dim=1)
        ring = ring / ring.abs().amax(1, keepdim=True)
        steps = torch.arange(1, self.points + 1, dtype=torch.float32)
        offsets = ring[:, None, None] * steps[:, None]  # [M, 1, P, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        xavier_linear(self.value_proj)
        xavier_linear(self.output_proj)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        sizes: Sequence[tuple[int, int]],
        padding: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [B, Q, C], position added.
            reference_points: [B, Q, L, 2] (x, y), or [B, Q, L, 4] (centre x, y, width, height); 0..1 spans a level
                from outer edge to outer edge.
            value: [B, S, C], the tokens of all levels, level after level, row-major.
            sizes: (h, w) of each level; their areas add up to S.
            padding: [B, S] bool, True where a token is padding and counts as zero; None for none.

        Returns:
            [B, Q, C].
        """
        batch, queries, _ = query.shape
        heads, levels, points = self.heads, self.levels, self.points
        projected = self.value_proj(value)
        if padding is not None:
            projected = projected.masked_fill(padding[..., None], 0.0)
        projected = projected.view(batch, value.shape[1], heads, -1)
        offsets, logits = self._offsets_and_logits(query)
        offsets = offsets.view(batch, queries, heads, levels, points, 2)
        logits = logits.view(batch, queries, heads, levels * points)
        sampled = ops.ms_deform_attn_fused(projected, sizes, reference_points, offsets, logits)
        out: Tensor = self.output_proj(sampled)
        return out

    def _offsets_and_logits(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """[B, Q, M L P 2] and [B, Q, M L P] of queries [B, Q, C], in prediction by one product."""
        layers, dtype = (self.sampling_offsets, self.attention_weights), autocast_type(query)
        joined = self.kept(
            tuple(tensor for layer in layers for tensor in (layer.weight, layer.bias)),
            dtype,
            lambda: (
                cast(torch.cat([layer.weight for layer in layers]), dtype),
                cast(torch.cat([layer.bias for layer in layers]), dtype),
            ),
        )
        if joined is None:
            return self.sampling_offsets(query), self.attention_weights(query)
        weight, bias = joined
        assert weight is not None
        both = F.linear(query, weight, bias)
        first = self.sampling_offsets.out_features
        return both[..., :first], both[..., first:]
