"""Multi-head attention with packed projections, as the transformer decoders of DETR's family use it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None, dropout: float) -> Tensor:
    """Attention of query [B, M, Q, D] over key and value [B, M, S, D].

    ``blocked`` is [B, 1, Q, S] or [Q, S] bool, True where a query may not attend; None opens everything.
    """
    allowed = None if blocked is None else ~blocked
    return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)


class MultiheadAttention(nn.Module):
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
        self.out_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices, biases 0."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def _split(self, tokens: Tensor) -> Tensor:
        batch, length, _ = tokens.shape
        return tokens.view(batch, length, self.heads, -1).transpose(1, 2)

    def _merge(self, heads: Tensor) -> Tensor:
        batch, _, length, _ = heads.shape
        merged: Tensor = self.out_proj(heads.transpose(1, 2).reshape(batch, length, self.channels))
        return merged

    def forward(self, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Cross-attention.

        Args:
            query: [B, Q, C], position added.
            key: [B, S, C], position added.
            value: [B, S, C].
            blocked: [B, 1, Q, S] or [Q, S] bool, True where a query may not attend.

        Returns:
            [B, Q, C].
        """
        c = self.channels
        weight, bias = self.in_proj_weight, self.in_proj_bias
        q = self._split(F.linear(query, weight[:c], bias[:c]))
        k = self._split(F.linear(key, weight[c : 2 * c], bias[c : 2 * c]))
        v = self._split(F.linear(value, weight[2 * c :], bias[2 * c :]))
        return self._merge(scaled_dot_product(q, k, v, blocked, self.dropout if self.training else 0.0))

    def self_attention(self, tokens: Tensor, positions: Tensor | None, blocked: Tensor | None = None) -> Tensor:
        """Attention of tokens [B, Q, C] among themselves; positions [Q, C] are added to query and key only."""
        c = self.channels
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if positions is None:
            q, k, v = F.linear(tokens, weight, bias).split(c, dim=2)
        else:
            q, k = F.linear(tokens + positions, weight[: 2 * c], bias[: 2 * c]).split(c, dim=2)
            v = F.linear(tokens, weight[2 * c :], bias[2 * c :])
        q, k, v = self._split(q), self._split(k), self._split(v)
        return self._merge(scaled_dot_product(q, k, v, blocked, self.dropout if self.training else 0.0))
