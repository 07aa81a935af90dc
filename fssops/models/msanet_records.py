"""What MSANet knows of a support set, and what it finds for a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class MSANetSupport:
    """Summary of E = B * N support sets of K images.

    Attributes:
        ways: N.
        layers: [E, K, C, h, w] a tapped layer; :func:`compacted`, the positions are one row.
        masks: [E, K, h, w] a tapped layer; 0 where a position is not kept.
        top: [E, K, C, h, w], the last layer's output, for the prior mask.
        top_masks: [E, K, h, w].
        prototypes: [E, K, C].
        gates: [E, K, C], the attention of each channel.
        attention: [E, C, h, w], mean over shots of the gated embeddings.
        gram: [E, K, C, C], of the second layer.
    """

    ways: int
    layers: list[Tensor]
    masks: list[Tensor]
    top: Tensor
    top_masks: Tensor
    prototypes: Tensor
    gates: Tensor
    attention: Tensor
    gram: Tensor


@dataclass
class MSANetResult:
    """What :meth:`MSANet.compare` finds for R = B * Q * N pairs of a query and a way, at feature resolution.

    Attributes:
        query: [R, C, h, w] embedding of the query.
        prototype: [R, C].
        similarity: [R, layers, h, w] mean over shots, before the reduction.
        reduced: [R, S, h, w].
        prior: [R, 1, h, w].
        attention: [R, C, h, w].
        merged: [R, C, h, w], the decoder's input.
        scene_distances: [R, K] psi of each shot.
        shot_weights: [R, K], sum to 1.
        scene_distance: [R] psi.
        meta: [R, 2, h, w] logits of the meta learner.
        base: [B * Q, 1 + base classes, h, w] logits of the base learner.
        base_share: [R, 1, h, w] probability of any base class.
        ensemble: [R, 2, h, w] background and foreground, compared by argmax; not logits.
    """

    query: Tensor
    prototype: Tensor
    similarity: Tensor
    reduced: Tensor
    prior: Tensor
    attention: Tensor
    merged: Tensor
    scene_distances: Tensor
    shot_weights: Tensor
    scene_distance: Tensor
    meta: Tensor
    base: Tensor
    base_share: Tensor
    ensemble: Tensor


def paired(
    support: MSANetSupport, features: dict[str, Tensor], episodes: int, queries: int
) -> tuple[MSANetSupport, dict[str, Tensor]]:
    """Supports and queries repeated so that row (b, q, n) of both is a pair."""
    ways = support.ways

    def of_support(x: Tensor) -> Tensor:
        if queries == 1:
            return x
        repeated: Tensor = x.unflatten(0, (episodes, 1, ways)).expand(-1, queries, *(-1,) * x.dim()).flatten(0, 2)
        return repeated

    masks = {id(mask): of_support(mask) for mask in support.masks}
    paired = replace(
        support,
        layers=[of_support(layer) for layer in support.layers],
        masks=[masks[id(mask)] for mask in support.masks],
        top=of_support(support.top),
        top_masks=of_support(support.top_masks),
        prototypes=of_support(support.prototypes),
        gates=of_support(support.gates),
        attention=of_support(support.attention),
        gram=of_support(support.gram),
    )
    if ways == 1:
        return paired, features
    return paired, {name: x.repeat_interleave(ways, dim=0) for name, x in features.items()}


def compacted(support: MSANetSupport) -> MSANetSupport:
    """The same support sets with only the positions that count, [E, K, C, 1, n], n being the most of any shot.

    What is compared with them is the same; the memory is that of the objects, not of the images.
    """
    layers, masks = [], []
    for layer, mask in zip(support.layers, support.masks, strict=True):
        columns, weights = _columns(layer, mask)
        layers.append(columns)
        masks.append(weights)
    top, top_masks = _columns(support.top, support.top_masks)
    return replace(support, layers=layers, masks=masks, top=top, top_masks=top_masks)


def _columns(features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Features [E, K, C, h, w] and masks [E, K, h, w] at the positions whose mask is not 0, padded with zeros."""
    kept = (masks > 0).flatten(0, 1).flatten(1)
    most = max(1, int(kept.sum(1).max()))
    # Rows of channels: the kernels read them without a copy, as they read channels-last maps.
    rows = features.flatten(0, 1).permute(0, 2, 3, 1).flatten(1, 2)
    columns = rows.new_zeros(len(rows), most, rows.shape[-1])
    weights = masks.new_zeros(len(rows), most)
    for row, mask, chosen, column, weight in zip(
        rows, masks.flatten(0, 1).flatten(1), kept, columns, weights, strict=True
    ):
        places = chosen.nonzero()[:, 0]
        column[: len(places)] = row[places]
        weight[: len(places)] = mask[places]
    shape = masks.shape[:2]
    return columns.transpose(1, 2).unflatten(0, shape)[:, :, :, None], weights.unflatten(0, shape)[:, :, None]


def joined(shots: Sequence[MSANetSupport]) -> MSANetSupport:
    """Compacted summaries of the same support sets, of some shots each, as one of all shots."""
    if len(shots) == 1:
        return shots[0]

    def padded(parts: Sequence[Tensor]) -> Tensor:
        most = max(part.shape[-1] for part in parts)
        return torch.cat([torch.nn.functional.pad(part, (0, most - part.shape[-1])) for part in parts], dim=1)

    counts = [shot.prototypes.shape[1] for shot in shots]
    attention = sum(shot.attention * count for shot, count in zip(shots, counts, strict=True)) / sum(counts)
    return MSANetSupport(
        ways=shots[0].ways,
        layers=[padded(parts) for parts in zip(*(shot.layers for shot in shots), strict=True)],
        masks=[padded(parts) for parts in zip(*(shot.masks for shot in shots), strict=True)],
        top=padded([shot.top for shot in shots]),
        top_masks=padded([shot.top_masks for shot in shots]),
        prototypes=torch.cat([shot.prototypes for shot in shots], dim=1),
        gates=torch.cat([shot.gates for shot in shots], dim=1),
        attention=torch.as_tensor(attention),
        gram=torch.cat([shot.gram for shot in shots], dim=1),
    )
