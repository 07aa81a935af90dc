"""Exact average-linkage clustering of unit vectors without a matrix of all their distances.

The average of all cosines between the members of two clusters is the product of the clusters' means, so what UPGMA
compares follows from N means and sizes. UPGMA is reducible: after a merge no cluster comes closer to a third than the
nearer of the two was. Hence all mutual nearest pairs may merge at once, a cluster's nearest other stays valid until
one of the two merges, and a cluster that is too far from all others is final and leaves the search.

While many clusters are left, the nearest ones are sought row block by row block. Coordinates along a few leading
directions and the length of the rest bound every product from above, |<x, y>| <= <Px, Py> + |Rx| |Ry|, so that few
products are made in all channels; where the bound does not tell enough apart, all are. When the matrix of what is left
is small, it is made once and updated by weighted means of its rows (Lance and Williams). The partition is the same as
that of a hierarchy over the whole matrix, up to the rounding of products.

Source: Müllner, "Modern hierarchical, agglomerative clustering algorithms", 2011, section 2; Murtagh, "Complexities of
hierarchic clustering algorithms", 1984.
"""

from __future__ import annotations

import torch
from torch import Tensor

MATRIX_LIMIT = 1024
"""Clusters whose matrix is made: 4 MB, a sixteenth of that of 4,096 positions."""
ROWS_A_BLOCK = 256
FEWEST_DIRECTIONS, CHANNELS_A_DIRECTION = 32, 16
MOST_PRODUCTS_A_ROW = 8
"""Above so many the bound is given up."""
_COLUMNS_A_GROUP = 64
_ROUNDING = 4e-6
"""Added to squared lengths of the rest, so that rounding cannot make a bound too low."""
_NOTHING = -1e9
"""Stands for the product of a cluster with itself or with one that is gone; finite, since means of rows are taken."""


@torch.no_grad()
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
    count, vectors = len(vectors), vectors.contiguous()
    merges = _Merges(count, vectors)
    # Sizes are exact in float32 up to 2^24 members.
    means, sizes, names = vectors, vectors.new_ones(count), torch.arange(count, device=vectors.device)
    similarity = vectors.new_full((count,), _NOTHING)
    nearest = torch.zeros_like(names)
    searched = count
    least = max(1 - threshold, -2.0)
    search = _Search(vectors if count > matrix_limit else vectors[:0], least, rows_a_block)
    while len(names) > matrix_limit:
        similarity[:searched], nearest[:searched] = search.nearest(means, searched)
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
        search.follow(order, place[first], merged)
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


class _Search:
    """Finds the nearest others of the first of some means, the bound kept from one round to the next.

    Args:
        vectors: [N, C] that the first means are.
        least: products up to this need not be told apart.
        rows_a_block: rows of bounds or products that are held at a time.
    """

    def __init__(self, vectors: Tensor, least: float, rows_a_block: int) -> None:
        self.least, self.rows_a_block = least, rows_a_block
        count, channels = vectors.shape
        wanted = max(FEWEST_DIRECTIONS, channels // CHANNELS_A_DIRECTION)
        self.lead: Tensor | None = None
        if 2 * wanted <= min(count, channels):
            # Subspace iteration from positions all over the image.
            start = torch.linalg.qr(vectors[:: count // wanted][:wanted].T).Q
            self.directions = torch.linalg.qr(vectors.T @ (vectors @ start)).Q
            self.lead = self._lead(vectors)
            self.bounds = vectors.new_empty(rows_a_block, count + _COLUMNS_A_GROUP)

    def nearest(self, means: Tensor, searched: int) -> tuple[Tensor, Tensor]:
        """Largest product with another mean, and whose, both [searched]; where it is at most ``least``, any such."""
        if self.lead is not None:
            parts = []
            for start in range(0, searched, self.rows_a_block):
                part = self._nearest_within(means, self.lead, start, min(start + self.rows_a_block, searched))
                if part is None:
                    self.lead = None
                    return _nearest_of_all(means, searched, self.rows_a_block)
                parts.append(part)
            return torch.cat([value for value, _ in parts]), torch.cat([index for _, index in parts])
        return _nearest_of_all(means, searched, self.rows_a_block)

    def follow(self, order: Tensor, places: Tensor, merged: Tensor) -> None:
        """Take the means in another order, and some of them anew."""
        if self.lead is not None:
            self.lead = self.lead[order]
            self.lead[places] = self._lead(merged)

    def _lead(self, means: Tensor) -> Tensor:
        """[n, r + 1]: coordinates along the leading directions, and the length of what is left."""
        inner = means @ self.directions
        rest = (means.square().sum(1) - inner.square().sum(1)).clamp(min=0) + _ROUNDING
        return torch.cat([inner, rest.sqrt()[:, None]], 1)

    def _nearest_within(self, means: Tensor, lead: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor] | None:
        """Of the rows from ``start`` to ``stop``; None if too many products would have to be made."""
        rows, columns = stop - start, len(means)
        width = -(-columns // _COLUMNS_A_GROUP) * _COLUMNS_A_GROUP
        bounds = self.bounds[:rows, :width]
        torch.mm(lead[start:stop], lead.T, out=bounds[:, :columns])
        bounds[:, columns:] = _NOTHING
        bounds[:, start:stop].fill_diagonal_(_NOTHING)
        grouped = bounds.unflatten(1, (-1, _COLUMNS_A_GROUP))
        peaks = grouped.amax(2)
        group = peaks.argmax(1)
        each = torch.arange(rows, device=means.device)
        index = grouped[each, group].argmax(1) + group * _COLUMNS_A_GROUP
        value = torch.linalg.vecdot(means[start:stop], means[index])
        # What may be larger still.
        bounds[each, index] = _NOTHING
        peaks[each, group] = grouped[each, group].amax(1)
        limit = value.clamp(min=self.least)
        row, group = (peaks > limit[:, None]).nonzero(as_tuple=True)
        pick, column = (grouped[row, group] > limit[row, None]).nonzero(as_tuple=True)
        row, column = row[pick], column + group[pick] * _COLUMNS_A_GROUP
        if len(row) > MOST_PRODUCTS_A_ROW * rows:
            return None
        product = torch.linalg.vecdot(means[start + row], means[column])
        best = value.scatter_reduce(0, row, product, "amax")
        winner = product == best[row]
        index = torch.where(best > value, columns, index).scatter_reduce(0, row[winner], column[winner], "amin")
        return best, index


def _nearest_of_all(means: Tensor, searched: int, rows_a_block: int) -> tuple[Tensor, Tensor]:
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


def _largest(values: Tensor, group: int = _COLUMNS_A_GROUP) -> tuple[Tensor, Tensor]:
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
