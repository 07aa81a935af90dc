"""What MSANet knows of a support set, and what it finds for a query."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass
class MSANetSupport:
    """Summary of E = B * N support sets of K images.

    Attributes:
        ways: N.
        layers: [E, K, C, h, w] a tapped layer, or [E, K, C, 1, m], the positions that count alone. Empty once the
            queries' similarity has been found.
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
