"""Multi-head attention with packed projections, as the transformers of DETR's family use it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fssops import ops
from fssops.models.layers.derived import DerivingModule, Linear


class MultiheadAttention(DerivingModule):
    """Attention with M heads; parameters named and laid out as in ``torch.nn.MultiheadAttention``.

    All matrices start Xavier-uniform (the packed one as a whole), all biases at 0.

    Args:
        channels: C.
        heads: M, a divisor of C.
        dropout: rate on the attention weights, in training.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``.
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"MultiheadAttention: heads must divide channels {channels}, got {heads}")
        self.channels, self.heads, self.dropout = channels, heads, dropout
        self.in_proj_weight = nn.Parameter(Tensor(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(Tensor(3 * channels))
        self.out_proj = Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices, biases 0."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def _project(self, tokens: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        """Projections ``first``..``last - 1`` (0 query, 1 key, 2 value) of tokens, each [B, M, S, D]."""
        rows = slice(first * self.channels, last * self.channels)
        weight, bias = self.in_autocast_type(tokens, self.in_proj_weight, self.in_proj_bias)
        assert weight is not None
        assert bias is not None
        projected = F.linear(tokens, weight[rows], bias[rows])
        batch, length, _ = tokens.shape
        parts = projected.view(batch, length, last - first, self.heads, -1).permute(2, 0, 3, 1, 4)
        return parts.unbind(0)

    def _merge(self, heads: Tensor) -> Tensor:
        batch, _, length, _ = heads.shape
        merged: Tensor = self.out_proj(heads.transpose(1, 2).reshape(batch, length, self.channels))
        return merged

    def forward(self, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Cross-attention that every query shares.

        Args:
            query: [B, Q, C], position added.
            key: [B, S, C], position added.
            value: [B, S, C].
            blocked: [B, 1, 1, S] bool, True where no query may attend, or None.

        Returns:
            [B, Q, C].
        """
        (q,), (k,), (v,) = self._project(query, 0, 1), self._project(key, 1, 2), self._project(value, 2, 3)
        allowed = None if blocked is None else ~blocked
        dropout = self.dropout if self.training else 0.0
        return self._merge(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout))

    def masked(self, query: Tensor, key: Tensor, value: Tensor, mask: ops.AttentionMask) -> Tensor:
        """Cross-attention through a mask.

        Args:
            query: [B, Q, C], position added.
            key: [B, S, C], position added.
            value: [B, S, C].
            mask: which keys are open to each query.

        Returns:
            [B, Q, C].
        """
        (q,), (k,), (v,) = self._project(query, 0, 1), self._project(key, 1, 2), self._project(value, 2, 3)
        return self._merge(ops.masked_attention(q, k, v, mask))

    def self_attention(self, tokens: Tensor, positions: Tensor | None, blocked: Tensor | None = None) -> Tensor:
        """Attention of tokens among themselves.

        Args:
            tokens: [B, Q, C].
            positions: [Q, C], added to query and key; None for none.
            blocked: [Q, Q], [B, 1, Q, Q] or [B, 1, 1, Q] bool, True where a token may not attend; None for none.

        Returns:
            [B, Q, C].
        """
        if positions is None:
            q, k, v = self._project(tokens, 0, 3)
        else:
            q, k = self._project(tokens + positions, 0, 2)
            (v,) = self._project(tokens, 2, 3)
        allowed = None if blocked is None else ~blocked
        dropout = self.dropout if self.training else 0.0
        return self._merge(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout))
