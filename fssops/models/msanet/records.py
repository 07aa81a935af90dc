"""What MSANet computes of a support set, and of a query with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass
class MSANetSupport:
    """Summary of E = B * N support sets of K images.

    Attributes:
        ways: N.
        layers: [E, K, C, 1, m] a compared layer, at the positions that count; m is the most of any image. Empty once
            the queries have been compared with them.
        masks: [E, K, 1, m] a compared layer; 0 where fewer positions of an image count.
        top: [E, K, C, 1, m], the last layer's output where the mask is not 0, for the prior mask.
        top_masks: [E, K, 1, m].
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
    """What :meth:`MSANet.compare` computes for R = B * Q * N pairs of a query and a way, at feature resolution.

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
    support: MSANetSupport, features: dict[str, Tensor], queries: int
) -> tuple[MSANetSupport, Tensor, Tensor, Tensor]:
    """What the decoder reads of supports and queries, repeated so that row (b, q, n) of both is a pair.

    Args:
        support: of B * N sets.
        features: "query", "base" and "gram" [B * Q, ...].
        queries: Q.

    Returns:
        the support, whose layers and last output stay as they are, and the three features.
    """
    ways = support.ways

    def of_support(x: Tensor) -> Tensor:
        if queries == 1:
            return x
        repeated: Tensor = x.unflatten(0, (-1, 1, ways)).expand(-1, queries, *(-1,) * x.dim()).flatten(0, 2)
        return repeated

    repeated = replace(
        support,
        prototypes=of_support(support.prototypes),
        gates=of_support(support.gates),
        attention=of_support(support.attention),
        gram=of_support(support.gram),
    )
    of_queries = [features[name] for name in ("query", "base", "gram")]
    query, base, gram = of_queries if ways == 1 else (x.repeat_interleave(ways, dim=0) for x in of_queries)
    return repeated, query, base, gram
