"""What MSANet keeps of the compared layers while the backbone makes them, one after another.

The layers of one 473 x 473 image take 206 MB with ResNet-50. None of them is needed any more once its kept positions
have been copied (supports) or its similarity has been found (queries), and no gradient flows through the frozen
backbone, so an episode never holds more than one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fssops.models.msanet.records import MSANetSupport
from fssops.models.msanet.similarity import multi_similarity, positions_above_mean, prior_mask, resize


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

    A mask is resized to twice the size of the first layer, then from layer to layer wherever the size changes; going
    straight to a layer's size would keep other positions.

    Args:
        masks: [n, H, W].
        first: size of the first layer that the authors tap, compared or not.
        exact_mean: see :func:`positions_above_mean`.
    """

    def __init__(self, masks: Tensor, first: tuple[int, int], *, exact_mean: bool) -> None:
        self._images, self._exact_mean = masks[:, None], exact_mean
        self._resized = resize(resize(self._images, (2 * first[0], 2 * first[1])), first)
        self._mask: Tensor | None = None
        self._layers: list[Columns] = []
        self._top: Columns | None = None

    def taker(self, images: Sequence[int]) -> Callable[[Tensor], None]:
        """A function that takes the layers [len(images), C, h, w] of these images, in order."""
        numbers = itertools.count()

        def take(layer: Tensor) -> None:
            number = next(numbers)
            if number == len(self._layers):
                self._layers.append(Columns(self._mask_at((layer.shape[-2], layer.shape[-1])), layer))
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

    def _mask_at(self, size: tuple[int, int]) -> Tensor:
        """Mask [n, h, w] of the next layer."""
        resized = resize(self._resized, size)
        if self._mask is None or resized is not self._resized:
            self._resized = resized
            self._mask = positions_above_mean(resized, exact_mean=self._exact_mean)[:, 0]
        return self._mask


class QueryLayers:
    """How similar the layers of queries are to the supports, found as the layers come.

    Args:
        support: of E sets, N ways after each other.
        queries: of each episode.
    """

    def __init__(self, support: MSANetSupport, queries: int) -> None:
        self._support, self._queries = support, queries
        self._maps: list[list[Tensor]] = [[] for _ in support.layers]

    def taker(self, rows: Sequence[int]) -> Callable[[Tensor], None]:
        """A function that takes the layers [len(rows), C, h, w] of these queries, counted over episodes, in order."""
        numbers = itertools.count()

        def take(layer: Tensor) -> None:
            number = next(numbers)
            support, masks = self._of_pairs(rows, self._support.layers[number], self._support.masks[number])
            self._maps[number] += multi_similarity([self._repeated(layer)], [support], [masks])

        return take

    def maps(self) -> list[Tensor]:
        """[R, K, h, w] of each layer, once all queries have been taken in order."""
        return [torch.cat(parts) for parts in self._maps]

    def prior(self, top: Tensor) -> Tensor:
        """Prior mask [R, K, h, w] of the last output [B * Q, C, h, w]."""
        support, masks = self._of_pairs(range(len(top)), self._support.top, self._support.top_masks)
        return prior_mask(self._repeated(top), support, masks)

    def _repeated(self, x: Tensor) -> Tensor:
        """[rows * N, ...] of something of the queries, [rows, ...]."""
        return x if self._support.ways == 1 else x.repeat_interleave(self._support.ways, dim=0)

    def _of_pairs(self, rows: Sequence[int], *parts: Tensor) -> list[Tensor]:
        """[rows * N, ...] of parts of the support sets, [E, ...]."""
        ways = self._support.ways
        sets = [row // self._queries * ways + way for row in rows for way in range(ways)]
        return [x if sets == list(range(len(x))) else x[sets] for x in parts]


def mean_over_shots(maps: dict[str, Tensor], size: tuple[int, int], last_shot_alone: str | None) -> Tensor:
    """The similarity to the supports of every layer, [R, layers, h, w].

    Args:
        maps: [R, K, h_l, w_l] of each layer.
        size: (h, w).
        last_shot_alone: how the names of the layers begin that count the last shot instead of the mean, as published.
    """
    means = []
    for name, of_shots in maps.items():
        last_alone = last_shot_alone is not None and name.startswith(last_shot_alone)
        means.append(resize(of_shots[:, -1:] if last_alone else of_shots.mean(1, keepdim=True), size))
    return torch.cat(means, dim=1)
