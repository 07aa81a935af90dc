"""Exact average-linkage clustering of unit vectors without a matrix of all their distances.

The average of all cosines between the members of two clusters is the product of the clusters' means, so what UPGMA
compares follows from N means and sizes. UPGMA is reducible: after a merge no cluster comes closer to a third than the
nearer of the two was. Hence all mutual nearest pairs may merge at once, a cluster's nearest other stays valid until
one of the two merges, and a cluster that is too far from all others is final and leaves the search.

While many clusters are left, the nearest ones are sought by products of means, row block by row block; when their
matrix is no larger than a fraction of the features, it is made once and updated by weighted means of its rows (Lance
and Williams). The partition is the same as that of a hierarchy over the whole matrix, up to the rounding of products.

Source: Müllner, "Modern hierarchical, agglomerative clustering algorithms", 2011, section 2; Murtagh, "Complexities of
hierarchic clustering algorithms", 1984.
"""

from __future__ import annotations

import torch
from torch import Tensor

MATRIX_LIMIT = 1024
"""Clusters whose matrix is made: 4 MB, a sixteenth of that of 4,096 positions."""
ROWS_A_BLOCK = 256
_NOTHING = -1e9
"""Stands for the product of a cluster with itself or with one that is gone; finite, since means of rows are taken."""


def average_linkage(
    vectors: Tensor, threshold: float, *, matrix_limit: int = MATRIX_LIMIT, rows_a_block: int = ROWS_A_BLOCK
) -> tuple[Tensor, Tensor]:
    """Clusters of unit vectors by average linkage of their cosine distances, cut at a distance.

    Args:
        vectors: [N, C] float32 or float64, each of length 1; N at least 1.
        threshold: merges at a distance below it are made; above 2: all.
        matrix_limit: number of clusters from which on their matrix is held.
        rows_a_block: rows of products that are held while the nearest are sought.

    Returns:
        labels [N] int64, numbered in the order of the clusters' first members; and the distances [merges] at which
        clusters merged, ascending.
    """
    count = len(vectors)
    merges = _Merges(count, vectors)
    # Sizes are exact in float32 up to 2^24 members.
    means, sizes, names = vectors, vectors.new_ones(count), torch.arange(count, device=vectors.device)
    similarity = vectors.new_full((count,), _NOTHING)
    nearest = torch.zeros_like(names)
    searched = count
    least = max(1 - threshold, -2.0)
    while len(names) > matrix_limit:
        similarity[:searched], nearest[:searched] = _nearest(means, searched, rows_a_block)
        near = similarity > least
        if not bool(near.any()):
            return merges.labels(), merges.heights()
        first, second = _mutual_pairs(similarity, nearest, near)
        merges.add(names[first], names[second], similarity[first])
        share = (sizes[first] / (sizes[first] + sizes[second]))[:, None]
        merged = means[second].lerp(means[first], share)
        sizes[first] += sizes[second]
        names[first] = torch.minimum(names[first], names[second])
        stale = _changed(first, second, nearest)
        near[second] = False
        # Rows to search come first, so that products among them are made once. What is too far from everything leaves:
        # it is nobody's nearest, so no index that is still valid points to it.
        order = torch.cat([(stale & near).nonzero()[:, 0], (~stale & near).nonzero()[:, 0]])
        place = torch.zeros_like(nearest)
        place[order] = torch.arange(len(order), device=order.device)
        searched = int((stale & near).sum())
        means, sizes, names = means[order], sizes[order], names[order]
        means[place[first]] = merged
        similarity, nearest = similarity[order], place[nearest[order]]
    _merge_by_matrix(means, sizes, names, least, merges)
    return merges.labels(), merges.heights()


class _Merges:
    """Which clusters merged, by the positions of their first members, and at what distance."""

    def __init__(self, count: int, like: Tensor) -> None:
        self.parent = torch.arange(count, device=like.device)
        self._heights = [like.new_empty(0)]

    def add(self, first: Tensor, second: Tensor, similarity: Tensor) -> None:
        # A cluster is called after its lowest position.
        self.parent[torch.maximum(first, second)] = torch.minimum(first, second)
        self._heights.append(1 - similarity)

    def heights(self) -> Tensor:
        return torch.cat(self._heights).sort().values

    def labels(self) -> Tensor:
        root = self.parent
        while not torch.equal(root, root[root]):
            root = root[root]
        is_root = root == torch.arange(len(root), device=root.device)
        return (is_root.cumsum(0) - 1)[root]


def _nearest(means: Tensor, searched: int, rows_a_block: int) -> tuple[Tensor, Tensor]:
    """Largest product with another mean, and whose: both [searched], for the first ``searched`` of ``means``."""
    best = means.new_full((searched,), _NOTHING)
    index = torch.zeros(searched, dtype=torch.int64, device=means.device)
    for start in range(0, searched, rows_a_block):
        stop = min(start + rows_a_block, searched)
        products = means[start:stop] @ means[start:].T
        products.fill_diagonal_(_NOTHING)
        value, position = _largest(products)
        _improve(best[start:stop], index[start:stop], value, position + start)
        # The products of this block with rows that come later serve those rows too.
        later = products[:, stop - start : searched - start]
        if later.numel():
            value, position = later.max(0)
            _improve(best[stop:], index[stop:], value, position + start)
    return best, index


def _improve(best: Tensor, index: Tensor, value: Tensor, position: Tensor) -> None:
    better = value > best
    torch.where(better, value, best, out=best)
    torch.where(better, position, index, out=index)


def _largest(values: Tensor, group: int = 64) -> tuple[Tensor, Tensor]:
    """As ``values.max(1)``, three times as fast on a CPU: places are sought only in the best of groups of columns."""
    rows, columns = values.shape
    whole = columns // group * group
    if not whole:
        return values.max(1)
    grouped = values[:, :whole].unflatten(1, (-1, group))
    most, best = grouped.amax(2).max(1)
    place = grouped[torch.arange(rows, device=values.device), best].argmax(1) + best * group
    if whole == columns:
        return most, place
    rest, rest_place = values[:, whole:].max(1)
    return torch.maximum(most, rest), torch.where(rest > most, rest_place + whole, place)


def _changed(first: Tensor, second: Tensor, nearest: Tensor) -> Tensor:
    """Which clusters must look for their nearest anew: those of a merge and those whose nearest was one of them."""
    merged = torch.zeros_like(nearest, dtype=torch.bool)
    merged[first] = merged[second] = True
    return merged | merged[nearest]


def _mutual_pairs(similarity: Tensor, nearest: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs that are each other's nearest; where rounding left none, the nearest pair of all."""
    everyone = torch.arange(len(nearest), device=nearest.device)
    first = (near & (nearest[nearest] == everyone) & (everyone < nearest)).nonzero()[:, 0]
    if not len(first):
        first = torch.where(near, similarity, _NOTHING).argmax()[None]
    return first, nearest[first]


def _merge_by_matrix(means: Tensor, sizes: Tensor, names: Tensor, least: float, merges: _Merges) -> None:
    """Go on with all products of the means at hand."""
    table = means @ means.T
    table.fill_diagonal_(_NOTHING)
    similarity, nearest = _largest(table)
    while True:
        near = similarity > least
        if not bool(near.any()):
            return
        first, second = _mutual_pairs(similarity, nearest, near)
        merges.add(names[first], names[second], similarity[first])
        share = (sizes[first] / (sizes[first] + sizes[second]))[:, None]
        rows = table[second].lerp(table[first], share)
        rows[:, first] = rows[:, second].lerp(rows[:, first], share.T)
        table[first], table[:, first] = rows, rows.T
        table[first, first] = _NOTHING
        sizes[first] += sizes[second]
        names[first] = torch.minimum(names[first], names[second])
        near[second] = False
        stale = (_changed(first, second, nearest) & near).nonzero()[:, 0]
        table[:, second] = _NOTHING
        similarity[~near] = _NOTHING
        similarity[stale], nearest[stale] = _largest(table[stale])
