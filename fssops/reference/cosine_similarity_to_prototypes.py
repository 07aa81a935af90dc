"""The plain PyTorch definitions of :mod:`fssops.ops.cosine_similarity_to_prototypes`."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine_similarity_to_prototypes(
    features: Tensor, prototypes: Tensor, *, scale: float = 1.0, eps: float = 1e-8
) -> Tensor:
    """Features [B, C, h, w] and prototypes [B, N, C] -> [B, N, h, w]; lengths are clamped to eps from below."""
    f = features / torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(eps)
    p = prototypes / torch.linalg.vector_norm(prototypes, dim=2, keepdim=True).clamp_min(eps)
    return scale * torch.einsum("bchw,bnc->bnhw", f, p)


def prototype_similarity(a: Tensor, b: Tensor, *, eps: float = 1e-8) -> Tensor:
    """a [B, N, C], b [B, M, C] -> cosines [B, N, M]; lengths are clamped to eps from below."""
    a = a / torch.linalg.vector_norm(a, dim=2, keepdim=True).clamp_min(eps)
    b = b / torch.linalg.vector_norm(b, dim=2, keepdim=True).clamp_min(eps)
    return torch.einsum("bnc,bmc->bnm", a, b)
