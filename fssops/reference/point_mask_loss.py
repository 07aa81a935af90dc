"""Plain PyTorch definitions of point sampling, mask losses at points, and matching costs.

See :mod:`fssops.ops.point_mask_loss`; everything here is composed of grid_sample, sort and matrix products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fssops.reference.mask_sources import FactoredMasks, MaskSource, dense_masks


def sample_points(
    maps: MaskSource, points: Tensor, *, index: Tensor | None = None, padded_size: tuple[int, int] | None = None
) -> Tensor:
    """Bilinear samples of maps at points (x, y) in [0, 1], zeros outside: [N, C, P], or [N, P] of maps [N, h, w]."""
    dense = dense_masks(maps)
    single = dense.dim() == 3
    dense = dense[:, None] if single else dense
    if not dense.is_floating_point():
        dense = dense.to(points.dtype)
    if index is not None:
        dense = dense[index]
    if padded_size is not None:
        dense = F.pad(dense, (0, padded_size[1] - dense.shape[3], 0, padded_size[0] - dense.shape[2]))
    count, channels = dense.shape[:2]
    grid = (2.0 * points - 1.0)[:, None].expand(count, -1, -1, -1).to(dense.dtype)
    if dense.numel() == 0:
        sampled = dense.sum() + dense.new_zeros(count, channels, points.shape[1])
    else:
        sampled = F.grid_sample(dense, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, :, 0]
    return sampled[:, 0] if single else sampled


def uniform_points(
    rows: int,
    points: int,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Uniform points [rows, points, 2] in [0, 1), multiples of 2^-24.

    On a CPU they are those of Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
    with a seed that the generator draws: number n is word n % 4 of counter n // 4. Elsewhere they are ``torch.rand``'s.
    """
    if torch.device(device).type != "cpu":
        return torch.rand(rows, points, 2, device=device, generator=generator)
    seed = draw_seed(generator)
    count = rows * points * 2
    low, mask = torch.arange((count + 3) // 4, dtype=torch.int64), 0xFFFFFFFF
    words = [low & mask, low >> 32, torch.zeros_like(low), torch.zeros_like(low)]
    keys = [seed & mask, (seed >> 32) & mask]
    for _ in range(10):
        (first_low, first_high), (second_low, second_high) = (
            _product(factor, words[place]) for factor, place in ((0xD2511F53, 0), (0xCD9E8D57, 2))
        )
        words = [second_high ^ words[1] ^ keys[0], second_low, first_high ^ words[3] ^ keys[1], first_low]
        keys = [(keys[0] + 0x9E3779B9) & mask, (keys[1] + 0xBB67AE85) & mask]
    numbers = torch.stack(words, dim=1).flatten()[:count]
    return ((numbers >> 8).float() * 2.0**-24).view(rows, points, 2)


def draw_seed(generator: torch.Generator | None) -> Tensor:
    """One int64 number."""
    return torch.randint(2**63 - 1, (1,), generator=generator)


def _product(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper 32 bits of the product of two 32-bit numbers, which int64 would not hold."""
    upper, lower = factor * (word >> 16), factor * (word & 0xFFFF)
    middle = upper + (lower >> 16)
    return ((middle & 0xFFFF) << 16) | (lower & 0xFFFF), middle >> 16


@torch.no_grad()
def uncertain_points(
    logits: Tensor | FactoredMasks,
    num_points: int,
    *,
    oversample_ratio: float = 3.0,
    importance_ratio: float = 0.75,
    generator: torch.Generator | None = None,
    given_draws: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Points [N, P, 2]: of the candidates those whose logits are nearest to 0, in their order; then the others."""
    maps = logits.logits() if isinstance(logits, FactoredMasks) else logits
    if given_draws is None:
        counts = int(num_points * oversample_ratio), num_points - int(importance_ratio * num_points)
        candidates, uniform = (uniform_points(len(maps), n, device=maps.device, generator=generator) for n in counts)
    else:
        candidates, uniform = given_draws
    from_candidates = num_points - uniform.shape[1]
    uncertainty = -sample_points(maps, candidates.to(maps.dtype)).abs()
    nearest = uncertainty.sort(dim=1, descending=True, stable=True).indices[:, :from_candidates].sort(dim=1).values
    return torch.cat((candidates.gather(1, nearest[..., None].expand(-1, -1, 2)), uniform), dim=1)


def point_mask_loss(
    logits: Tensor | FactoredMasks,
    targets: MaskSource,
    points: Tensor | None,
    num_masks: Tensor | float = 1.0,
    *,
    target_index: Tensor | None = None,
    padded_size: tuple[int, int] | None = None,
    reduction: str = "sum",
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy (mean over points) and dice loss at points; see :func:`fssops.ops.point_mask_loss`."""
    maps = logits.logits() if isinstance(logits, FactoredMasks) else logits
    x = maps if points is None else sample_points(maps, points)
    if isinstance(targets, Tensor) and targets.dim() == 2:
        t = targets.to(x.dtype)
    else:
        if points is None:
            raise ValueError("point_mask_loss: points must be given for masks, got None")
        t = sample_points(targets, points, index=target_index, padded_size=padded_size).to(x.dtype)
    cross_entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none").mean(1)
    probabilities = x.sigmoid()
    overlap = 2 * (probabilities * t).sum(1)
    dice = 1 - (overlap + 1) / (probabilities.sum(1) + t.sum(1) + 1)
    if reduction == "sum":
        cross_entropy, dice = cross_entropy.sum(), dice.sum()
    return cross_entropy / num_masks, dice / num_masks


@torch.no_grad()
def pairwise_mask_cost(
    logits: Tensor | FactoredMasks,
    targets: MaskSource,
    points: Tensor | None = None,
    *,
    class_logits: Tensor | None = None,
    labels: Tensor | None = None,
    mask_weight: float = 5.0,
    class_weight: float = 2.0,
    dice_weight: float = 5.0,
    padded_size: tuple[int, int] | None = None,
) -> Tensor:
    """Matching cost [Q, G]; see :func:`fssops.ops.pairwise_mask_cost`."""
    frames = logits.features.shape[0] if isinstance(logits, FactoredMasks) else 1
    if isinstance(logits, FactoredMasks):
        if points is None:
            raise ValueError("pairwise_mask_cost: points must be given for factored masks, got None")
        sampled = sample_points(logits.features, points)  # [T, C, P]
        x = torch.einsum("qc,tcp->qtp", logits.embeddings, sampled).flatten(1)
    elif logits.dim() == 3:
        if points is None:
            raise ValueError("pairwise_mask_cost: points must be given for maps, got None")
        x = sample_points(logits, points)
    else:
        x = logits
    if isinstance(targets, Tensor) and targets.dim() == 2:
        t = targets.to(x.dtype)
    else:
        if points is None:
            raise ValueError("pairwise_mask_cost: points must be given for masks, got None")
        t = sample_points(targets, points, padded_size=padded_size).to(x.dtype)
        t = t.unflatten(0, (t.shape[0] // frames, frames)).flatten(1)
    one = torch.ones_like(x)
    positive = F.binary_cross_entropy_with_logits(x, one, reduction="none")
    negative = F.binary_cross_entropy_with_logits(x, torch.zeros_like(x), reduction="none")
    cross_entropy = (positive @ t.T + negative @ (1 - t).T) / x.shape[1]
    probabilities = x.sigmoid()
    overlap = 2 * (probabilities @ t.T)
    dice = 1 - (overlap + 1) / (probabilities.sum(1)[:, None] + t.sum(1)[None] + 1)
    cost = mask_weight * cross_entropy + dice_weight * dice
    if class_logits is not None and labels is not None:
        cost = cost - class_weight * class_logits.to(x.dtype).softmax(-1)[:, labels]
    return cost
