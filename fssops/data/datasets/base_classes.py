"""Label maps of a fold's base classes, made from the annotations: what a base learner trains on."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from fssops.data.augmentation.chains import few_shot_chain
from fssops.data.augmentation.scene import Scene
from fssops.data.datasets.seeded_items import SeededItems
from fssops.data.errors import TooFewImagesError
from fssops.data.few_shot_source import FewShotSource
from fssops.normalisation import normalise
from fssops.structures import IGNORE, LabelMapBatch


def base_labels(label: np.ndarray, base_classes: Sequence[int]) -> np.ndarray:
    """Replace class ids by the place among the base classes, from 1; all else, novel classes too, is background.

    Args:
        label: [H, W] of class ids, 255 ignored.
        base_classes: ids in the order of the fold.

    Returns:
        uint8 [H, W]: 0, 1..C, 255.
    """
    table = np.zeros(max(256, 1 + int(label.max(initial=0)), 1 + max(base_classes)), dtype=np.uint8)
    table[list(base_classes)] = np.arange(1, 1 + len(base_classes))
    table[IGNORE] = IGNORE
    return np.asarray(table[label])


class BaseClassDataset(SeededItems[LabelMapBatch]):
    """Images with the base class of every pixel, each a batch of one.

    Args:
        source: the data set.
        base_classes: at most 254 class ids; channel i + 1 is the i-th of them.
        size: (height, width) of images and labels.
        augment: one of :data:`fssops.data.augmentation.chains.FEW_SHOT_CHAINS`; BAM's is ``msanet_base``.
        geometry: one of :data:`fssops.data.augmentation.chains.GEOMETRIES`.
        avoid: leave out images that show any of these classes, the novel ones. The published data keep them, and
            novel objects are background there.

    Raises:
        ValueError: an option is wrong.
        TooFewImagesError: no image is left.
    """

    seeds = 2**63 - 1

    def __init__(
        self,
        source: FewShotSource,
        base_classes: Sequence[int],
        size: Sequence[int] = (417, 417),
        *,
        augment: str = "none",
        geometry: str = "square",
        avoid: Collection[int] = (),
    ) -> None:
        if not 0 < len(base_classes) < IGNORE:
            raise ValueError(f"BaseClassDataset: base_classes must hold 1 to 254 classes, got {len(base_classes)}")
        self.source, self.base_classes = source, tuple(base_classes)
        self.transform = few_shot_chain(size, augment, geometry)
        areas = source.areas() if avoid else {}
        self.names = [name for name in source.names if not avoid or set(avoid).isdisjoint(areas[name])]
        if not self.names:
            raise TooFewImagesError(
                f"{source.label}: the base learner must have an image, got none of {len(source.names)} without a novel "
                "class"
            )

    def item(self, index: int, rng: np.random.Generator) -> LabelMapBatch:
        name = self.names[index]
        label = base_labels(self.source.label_map(name), self.base_classes)
        scene = self.transform(Scene(np.asarray(self.source.image(name)), {"label": label}), rng)
        labels = torch.from_numpy(scene.maps["label"].astype(np.int64))
        return LabelMapBatch(normalise(scene.image)[None], labels[None], [name])
