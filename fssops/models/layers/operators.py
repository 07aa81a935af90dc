"""The operators that the MaskFormer family's layers call, in one place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Softmax, location arithmetic, sampling and weighted sum of deformable attention; see ``fssops.ops``."""
    batch, _, heads, dim = value.shape
    _, queries, _, levels, points, _ = sampling_offsets.shape
    weights = attention_logits.softmax(-1).view(batch, queries, heads, levels, points)
    if reference_points.shape[-1] == 2:
        scale = torch.tensor([[w, h] for h, w in spatial_shapes], dtype=value.dtype, device=value.device)
        locations = reference_points[:, :, None, :, None] + sampling_offsets / scale[:, None]
    else:
        centre, size = reference_points[:, :, None, :, None].split(2, dim=-1)
        locations = centre + sampling_offsets / points * size * 0.5
    out = value.new_zeros(batch * heads, dim, queries)
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        plane = value[:, start : start + height * width].permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)  # [B M, Q, P, 2]
        sampled = F.grid_sample(plane, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        out = out + (sampled * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        start += height * width
    return out.view(batch, heads * dim, queries).transpose(1, 2)


def attention_mask_from_embeddings(
    mask_embeddings: Tensor, mask_features: Tensor, padding: Tensor | None = None
) -> Tensor:
    """Where a query may attend: [B, Q, S] bool, True = blocked.

    A key is blocked where its mask logit is negative; a query with every key blocked is opened to all of them, as
    published. Padded keys stay blocked.

    Args:
        mask_embeddings: [B, Q, E].
        mask_features: [B, E, S], at the level's size.
        padding: [B, S] bool, True = padding, or None.
    """
    blocked = torch.bmm(mask_embeddings, mask_features) < 0
    if padding is None:
        return blocked & ~blocked.all(-1, keepdim=True)
    blocked = blocked | padding[:, None]
    return (blocked & ~blocked.all(-1, keepdim=True)) | padding[:, None]


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of query [B, M, Q, D] over key, value [B, M, S, D]; mask [B, Q, S] bool, True = blocked."""
    allowed = None if mask is None else ~mask[:, None]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
