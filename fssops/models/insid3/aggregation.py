"""From candidates and clusters to a mask: a seed cluster, and those that belong to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fssops.models.insid3.debiasing import unit

_CLUSTERS_A_PRODUCT = 256


@dataclass
class ClusterScores:
    """Clusters of one target for one class.

    Attributes:
        labels: [M] int64 of the clusters below, ascending.
        area: [M] positions of each.
        hits: [M] candidates in each.
        seed_similarity: [M] cosine of the debiased mean with the prototype; the seed has the largest.
        cross: [M] mean cosine of the positions with the prototype.
        intra: [M] cosine of the means of the features as they are, with that of the seed.
        weight: [M] share of candidates; 1 for the seed.
        seed: index into ``labels``.
    """

    labels: Tensor
    area: Tensor
    hits: Tensor
    seed_similarity: Tensor
    cross: Tensor
    intra: Tensor
    weight: Tensor
    seed: Tensor

    @property
    def score(self) -> Tensor:
        """[M] product of cross, intra and weight."""
        return self.cross * self.intra * self.weight


def score_clusters(
    labels: Tensor, tokens: Tensor, debiased: Tensor, prototype: Tensor, candidates: Tensor, *, every: bool = False
) -> ClusterScores:
    """Score the clusters that hold a candidate, of which there must be one.

    Args:
        labels: [P] int64.
        tokens: [P, C] unit features.
        debiased: [P, D] unit features without position.
        prototype: [D] unit vector.
        candidates: [P] bool.
        every: also the clusters without a candidate; their weight is 0.
    """
    count = int(labels.max()) + 1
    area = torch.bincount(labels, minlength=count)
    hits = torch.bincount(labels[candidates], minlength=count)
    clusters = torch.arange(count, device=labels.device) if every else hits.nonzero()[:, 0]
    area, hits = area[clusters], hits[clusters]
    means = _means(labels, clusters, area, debiased)
    cross = means @ prototype
    seed_similarity = unit(means) @ prototype
    seed = seed_similarity.masked_fill(hits == 0, -torch.inf).argmax()
    centres = unit(_means(labels, clusters, area, tokens))
    weight = (hits / area).to(tokens.dtype)
    weight[seed] = 1
    return ClusterScores(clusters, area, hits, seed_similarity, cross, centres @ centres[seed], weight, seed)


def _means(labels: Tensor, clusters: Tensor, area: Tensor, vectors: Tensor) -> Tensor:
    """Mean vector [M, C] of each cluster, as products, which give the same on every device every time."""
    parts = clusters.split(_CLUSTERS_A_PRODUCT)
    sums = [(labels == part[:, None]).to(vectors.dtype) @ vectors for part in parts]
    return torch.cat(sums) / area[:, None]
