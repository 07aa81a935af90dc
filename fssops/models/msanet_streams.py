"""What MSANet keeps of the compared layers while the backbone makes them, one after another.

The layers of one 473 x 473 image take 206 MB with ResNet-50. None of them is needed any more once its kept positions
have been copied (supports) or its similarity has been found (queries), and no gradient flows through the frozen
backbone, so an episode never holds more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fssops.models.layers.multi_similarity import kept_positions, multi_similarity, resize
from fssops.models.msanet_records import MSANetSupport


class Columns:
    """Features of n images at the positions that count, padded to the most of any image.

    What is compared with them is the same as with the whole maps; the memory is that of the objects.

    Args:
        masks: [n, h, w]; positions with 0 do not count.
        like: [., C, h, w], gives channels, dtype and device.
    """

    def __init__(self, masks: Tensor, like: Tensor) -> None:
        self._masks = masks.flatten(1)
        most = max(1, int((self._masks != 0).sum(1).max()))
        # Rows of channels: the kernels read them without a copy, as they read channels-last maps.
        self._rows = like.new_zeros(len(masks), most, like.shape[1])
        self._weights = masks.new_zeros(len(masks), most)

    def take(self, images: Sequence[int], features: Tensor) -> None:
        """Keep what counts of features [len(images), C, h, w]."""
        for image, rows in zip(images, features.permute(0, 2, 3, 1).flatten(1, 2), strict=True):
            places = self._masks[image].nonzero()[:, 0]
            torch.index_select(rows, 0, places, out=self._rows[image, : len(places)])
            self._weights[image, : len(places)] = self._masks[image, places]

    def of_sets(self, sets: int) -> tuple[Tensor, Tensor]:
        """Features [E, K, C, 1, m] and masks [E, K, 1, m] of E sets of K images."""
        rows, weights = self._rows.unflatten(0, (sets, -1)), self._weights.unflatten(0, (sets, -1))
        return rows.transpose(2, 3)[:, :, :, None], weights[:, :, None]


class SupportLayers:
    """The compared layers and the last output of n support images, compacted as they come.

    Args:
        masks: [n, H, W].
        first: size of the first layer that the authors tap, compared or not; None for that of the first one taken.
        exact_mean: see :func:`kept_positions`.
    """

    def __init__(self, masks: Tensor, first: tuple[int, int] | None, *, exact_mean: bool) -> None:
        self._images, self._first, self._exact_mean = masks[:, None], first, exact_mean
        self._resized = self._kept = masks[:0]
        self._layers: list[Columns] = []
        self._top: Columns | None = None

    def taker(self, images: Sequence[int]) -> Callable[[Tensor], None]:
        """A function that takes the layers [len(images), C, h, w] of these images, in order."""
        number = -1

        def take(layer: Tensor) -> None:
            nonlocal number
            number += 1
            if number == len(self._layers):
                self._layers.append(Columns(self._kept_at((layer.shape[-2], layer.shape[-1])), layer))
            self._layers[number].take(images, layer)

        return take

    def take_top(self, images: Sequence[int], top: Tensor) -> None:
        """Take the last output [len(images), C, h, w] of these images."""
        if self._top is None:
            self._top = Columns(resize(self._images, (top.shape[-2], top.shape[-1]))[:, 0], top)
        self._top.take(images, top)

    def of_sets(self, sets: int) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """Layers, masks, last output and its masks, as :class:`MSANetSupport` holds them of E sets."""
        if self._top is None:
            raise RuntimeError("SupportLayers.of_sets: take_top must come first")
        pairs = [layer.of_sets(sets) for layer in self._layers]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs], *self._top.of_sets(sets)

    def _kept_at(self, size: tuple[int, int]) -> Tensor:
        """Mask [n, h, w] of the next layer; as mask_cascade: from layer to layer wherever the size changes."""
        if not self._layers:
            first = self._first or size
            self._resized = resize(resize(self._images, (2 * first[0], 2 * first[1])), first)
        if not self._layers or (self._resized.shape[-2], self._resized.shape[-1]) != size:
            self._resized = resize(self._resized, size)
            self._kept = kept_positions(self._resized, exact_mean=self._exact_mean)[:, 0]
        return self._kept


class QueryLayers:
    """How similar the layers of queries are to the supports.

    Args:
        support: of E sets, N ways after each other.
        queries: of each episode.
        rows: which of all queries, counted over episodes.
    """

    def __init__(self, support: MSANetSupport, queries: int, rows: Sequence[int]) -> None:
        self.maps: list[Tensor] = []
        """[rows * N, K, h, w] of each layer."""
        self._support = support
        self._sets = [row // queries * support.ways + way for row in rows for way in range(support.ways)]

    def take(self, layer: Tensor) -> None:
        """Take the next layer, [rows, C, h, w]."""
        number = len(self.maps)
        support, masks = self._support.layers[number], self._support.masks[number]
        self.maps += multi_similarity([self.of_pairs(layer)], [self.of_sets(support)], [self.of_sets(masks)])

    def of_pairs(self, x: Tensor) -> Tensor:
        """[rows * N, ...] of something of the queries, [rows, ...]."""
        return x if self._support.ways == 1 else x.repeat_interleave(self._support.ways, dim=0)

    def of_sets(self, x: Tensor) -> Tensor:
        """[rows * N, ...] of something of the support sets, [E, ...]."""
        return x if self._sets == list(range(len(x))) else x[self._sets]
