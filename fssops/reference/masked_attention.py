"""The plain PyTorch definition of masked attention and of its masks; see :mod:`fssops.ops.masked_attention`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WORD_BITS = 32
"""Keys a word of a packed mask."""


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, closed: Tensor | None = None, *, scale: float, open_empty: bool = True
) -> Tensor:
    """Attention [B, M, Q, D]; ``closed`` [B, Q, S] or [B, 1 or M, Q, S] is True where a query may not attend.

    A query with every key closed attends to all of them when ``open_empty``, else (and where S = 0) it gives 0.
    """
    scores = scale * (query @ key.transpose(-2, -1))
    if closed is None:
        closed = torch.zeros((), dtype=torch.bool, device=query.device).expand(1, 1, 1, key.shape[2])
    if closed.dim() == 3:
        closed = closed[:, None]
    empty = closed.all(-1, keepdim=True)
    if open_empty:
        closed = closed & ~empty
        empty = empty & (key.shape[2] == 0)
    # Empty rows stay open inside the softmax, so that neither it nor its gradient meets a row of -inf alone.
    weights = scores.masked_fill(closed & ~empty, float("-inf")).softmax(-1)
    return (weights @ value).masked_fill(empty, 0)


def closed_from_logits(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, Q, H * W], True where the logits [B, Q, h, w], resized bilinearly to (H, W), are negative."""
    batch, queries = mask_logits.shape[:2]
    if batch * queries * size[0] * size[1] == 0:
        return torch.zeros(batch, queries, size[0] * size[1], dtype=torch.bool, device=mask_logits.device)
    resized = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False)
    return resized.flatten(2) < 0


def closed_from_embeddings(mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
    """[B, Q, S], True where <embedding [B, Q, C], feature [B, C, S]> is negative."""
    return torch.bmm(mask_embeddings, mask_features) < 0


def pack_bits(closed: Tensor, open_empty: bool = True) -> Tensor:
    """[..., S] bool to [..., ceil(S / 32)] int32 with the bits of the open keys set; empty rows opened on demand."""
    if open_empty:
        closed = closed & ~closed.all(-1, keepdim=True)
    keys = closed.shape[-1]
    words = -(-keys // WORD_BITS)
    padded = F.pad(~closed, (0, words * WORD_BITS - keys))
    places = 1 << torch.arange(WORD_BITS, dtype=torch.int64, device=closed.device)
    packed = (padded.view(*closed.shape[:-1], words, WORD_BITS) * places).sum(-1)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)


def unpack_bits(bits: Tensor, keys: int) -> Tensor:
    """The closed keys [..., S] of :func:`pack_bits`."""
    places = torch.arange(WORD_BITS, dtype=torch.int32, device=bits.device)
    opened = (bits[..., None] >> places) & 1
    return opened.flatten(-2)[..., :keys] == 0
