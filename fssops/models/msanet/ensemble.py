"""How MSANet joins its two learners: what the base learner claims is taken away from the meta learner's foreground.

Source: Lang et al., "Learning what not to segment" (BAM), CVPR 2022; github chunbolang/BAM at c0f935c.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SMALLEST_SHARE = 1e-4
"""The ensemble's numbers are affine mixtures and may leave 0..1; their logarithm needs a floor."""


def base_share(base: Tensor, excluded: Tensor | None) -> Tensor:
    """Probability [R, 1, h, w] of any base class.

    Args:
        base: [R, 1 + base classes, h, w] logits of the base learner.
        excluded: [R] base class, from 1, that a row's way really is and that the base learner must not claim; 0 for
            none.
    """
    shares = base.float().softmax(1)[:, 1:]
    if excluded is not None:
        channel = torch.arange(1, base.shape[1], device=excluded.device)
        shares = torch.where((channel == excluded[:, None])[:, :, None, None], 0, shares)
    return shares.sum(1, keepdim=True)


def ensemble(
    meta: Tensor, base: Tensor, scene_distance: Tensor, scene_merge: nn.Module, base_merge: nn.Module
) -> Tensor:
    """Background and foreground [R, 2, h, w], compared by argmax; not logits.

    Args:
        meta: [R, 2, h, w] logits of the meta learner.
        base: [R, 1, h, w] of :func:`base_share`.
        scene_distance: [R] psi.
        scene_merge: 1x1 convolution of a share and psi, the same for both shares.
        base_merge: 1x1 convolution of the background and ``base``.
    """
    shares = meta.float().softmax(1)
    with torch.autocast(meta.device.type, enabled=False):
        scene = scene_distance.float()[:, None, None, None].expand_as(shares[:, :1])
        behind, front = (scene_merge(torch.cat([share, scene], dim=1)) for share in shares.split(1, dim=1))
        return torch.cat([base_merge(torch.cat([behind, base], dim=1)), front], dim=1)


def as_logits(pair: Tensor) -> Tensor:
    """Logarithms of the result of :func:`ensemble`: a softmax gives the shares of background and foreground."""
    return pair.clamp(min=_SMALLEST_SHARE).log()


def of_all_ways(pairs: Tensor) -> Tensor:
    """Logits [B, Q, 1 + N, H, W] of [B, Q, N, 2, H, W]: every way against the background, which stands at 0."""
    return torch.cat([torch.zeros_like(pairs[:, :, 0, :1]), pairs[:, :, :, 1] - pairs[:, :, :, 0]], dim=2)
