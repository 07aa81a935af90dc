"""What MM-Former computes of a support set, and of a query with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class MMFormerSupport:
    """Summary of E = B * N support sets of K images. S tokens are what queries attend to, T those of the object.

    Attributes:
        ways: N.
        keys: [E, K, S, C] a level, positions added.
        values: [E, K, S, C] a level.
        tokens: [E, K, T, C] a level; T is the most of any shot.
        positions: [E, K, T, C] of the tokens.
        weights: [E, K, T] of the tokens in the prototype; 0 where a shot has fewer.
    """

    ways: int
    keys: list[Tensor]
    values: list[Tensor]
    tokens: list[Tensor]
    positions: Tensor
    weights: Tensor

    def of_way(self, way: int, queries: int) -> MMFormerSupport:
        """The support sets of one way, each repeated for its queries: E becomes B * Q."""

        def repeated(x: Tensor) -> Tensor:
            of_way: Tensor = x.unflatten(0, (-1, self.ways))[:, way]
            return of_way if queries == 1 else of_way.repeat_interleave(queries, dim=0)

        return MMFormerSupport(
            ways=1,
            keys=[repeated(x) for x in self.keys],
            values=[repeated(x) for x in self.values],
            tokens=[repeated(x) for x in self.tokens],
            positions=repeated(self.positions),
            weights=repeated(self.weights),
        )

    def shot_shares(self, *, all_count: bool) -> tuple[Tensor, Tensor]:
        """What each shot counts in the mean [E, K], and whether there is any object [E], as 1 or 0.

        Args:
            all_count: empty supports count as others do.
        """
        shots = self.weights.shape[1]
        shown = (self.weights.sum(2) > 0).float()
        equal = torch.full_like(shown, 1 / shots)
        if all_count:
            return equal, torch.ones_like(shown[:, 0])
        number = shown.sum(1, keepdim=True)
        return torch.where(number > 0, shown / number.clamp(min=1), equal), (number[:, 0] > 0).float()


@dataclass
class MMFormerResult:
    """What :meth:`MMFormer.compare` computes for B * Q queries and N ways, with P proposals.

    Attributes:
        episodes: B.
        query_prototypes: [B * Q, N, P, 3 C] of the proposals, mean over shots.
        support_prototypes: [B * Q, N, 3 C], mean over shots.
        similarity: [B * Q, N, P] cosines.
        coefficients: [B * Q, N, P]; neither bounded nor adding up to 1.
        merged: [B * Q, N, h, w], the sum of coefficient times proposal, at stride 4.
    """

    episodes: int
    query_prototypes: Tensor
    support_prototypes: Tensor
    similarity: Tensor
    coefficients: Tensor
    merged: Tensor


def inside_mask(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Places whose weight is not 0, the same number for all rows, at least one.

    Args:
        weights: [n, S], not negative.

    Returns:
        places [n, T] int64 and their weights [n, T]; rows with fewer are filled with places of weight 0.
    """
    most = max(1, int((weights > 0).sum(1).max()))
    # Stable, so that the places of a row keep their order and results do not depend on the sort.
    places = (weights <= 0).to(torch.uint8).sort(dim=1, stable=True).indices[:, :most]
    return places, weights.gather(1, places)


def joined(shots: Sequence[MMFormerSupport]) -> MMFormerSupport:
    """Summaries of the same support sets, of some shots each, as one of all shots."""
    if len(shots) == 1:
        return shots[0]
    most = max(shot.weights.shape[2] for shot in shots)

    def filled(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([F.pad(part, (0, 0, 0, most - part.shape[2])) for part in parts], dim=1)

    return MMFormerSupport(
        ways=shots[0].ways,
        keys=[torch.cat(parts, dim=1) for parts in zip(*(shot.keys for shot in shots), strict=True)],
        values=[torch.cat(parts, dim=1) for parts in zip(*(shot.values for shot in shots), strict=True)],
        tokens=[filled(parts) for parts in zip(*(shot.tokens for shot in shots), strict=True)],
        positions=filled([shot.positions for shot in shots]),
        weights=torch.cat([F.pad(shot.weights, (0, most - shot.weights.shape[2])) for shot in shots], dim=1),
    )
