"""The plain PyTorch definition of cosine correlation; see :func:`fssops.ops.cosine_correlation`."""

from __future__ import annotations

import torch
from torch import Tensor

REDUCTIONS = ("mean", "max", "topk_mean")
"""What a query position keeps of its cosines; the index is what the native operator is given."""

DIVISORS = ("all", "kept")
"""Over which support positions the reduction runs: all, background ones as zero vectors, or the kept ones only."""

EPS_RULES = ("add_to_norms", "add_to_product", "clamp_norms")
"""How eps guards the division by the lengths: (|q| + eps)(|s| + eps), |q||s| + eps, max(|q|, eps) max(|s|, eps)."""

SHOTS = ("separate", "joint")
"""Whether every shot is reduced on its own, or the positions of all shots together."""


def cosine_correlation(
    query: Tensor,
    support: Tensor,
    masks: Tensor,
    *,
    reduction: str = "mean",
    k: int = 1,
    divisor: str = "kept",
    relu: bool = True,
    eps: float = 1e-5,
    eps_rule: str = "add_to_norms",
    shots: str = "separate",
) -> Tensor:
    """One layer: query [B, C, h, w], support [B, K, C, y, x], masks [B, N, K, y, x] -> [B, N, K or 1, h, w].

    Forms all [HW, HW] cosines.
    """
    batch, _, *size = query.shape
    count, groups = masks.shape[1], masks.shape[2]
    q = query.flatten(2)  # [B, C, P]
    weights = masks.to(query.dtype).flatten(3)[:, :, :, None]  # [B, N, K, 1, S]
    # A background vector is zero whatever its features are, NaN included.
    s = torch.where(weights != 0, support.flatten(3)[:, None] * weights, 0)  # [B, N, K, C, S]
    if shots == "joint":
        s = s.transpose(2, 3).flatten(3)[:, :, None]
        weights = weights.transpose(2, 3).flatten(3)[:, :, None]
        groups = 1
    products = torch.einsum("bcp,bnkcs->bnkps", q, s)
    q_norm = torch.linalg.vector_norm(q, dim=1)[:, None, None, :, None]
    s_norm = torch.linalg.vector_norm(s, dim=3)[:, :, :, None]
    if eps_rule == "add_to_norms":
        cosines = products / (q_norm + eps) / (s_norm + eps)
    elif eps_rule == "add_to_product":
        cosines = products / (q_norm * s_norm + eps)
    else:
        cosines = products / q_norm.clamp_min(eps) / s_norm.clamp_min(eps)
    if relu:
        cosines = torch.relu(cosines)
    nonzero = weights != 0  # [B, N, K, 1, S]
    total = nonzero.shape[-1]
    counts = torch.full_like(nonzero[..., 0], total, dtype=torch.int64) if divisor == "all" else nonzero.sum(dim=-1)
    if reduction == "mean":
        result = torch.where(nonzero, cosines, 0).sum(dim=-1) / counts.clamp_min(1).to(query.dtype)
    else:
        width = min(1 if reduction == "max" else k, total)
        if divisor == "kept":
            cosines = torch.where(nonzero, cosines, -torch.inf)
        largest = cosines.topk(width, dim=-1).values
        largest = torch.where(torch.arange(width, device=query.device) < counts[..., None], largest, 0)
        result = largest.sum(dim=-1) / counts.clamp(1, width).to(query.dtype)
    return result.reshape(batch, count, groups, *size)
