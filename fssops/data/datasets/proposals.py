"""Images cut into the regions of their labels: what MM-Former's segmenter trains on."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from fssops.data.augmentation.chains import few_shot_chain, with_enough
from fssops.data.augmentation.scene import Scene
from fssops.data.datasets.seeded_items import SeededItems
from fssops.data.errors import TooFewImagesError
from fssops.data.few_shot_source import FewShotSource
from fssops.normalisation import normalise
from fssops.structures import IGNORE, ProposalBatch


class ProposalDataset(SeededItems[ProposalBatch]):
    """Images with a base class, each a batch of one: the class of every pixel, and the object of one base class.

    Novel classes are ``IGNORE``: they are no region of their own, nor part of one. The object's class is drawn from
    the base classes that augmentation has left in the image.

    Args:
        source: the data set.
        base_classes: class ids.
        novel_classes: class ids.
        size: (height, width) of images and labels.
        augment: one of :data:`fssops.data.augmentation.chains.FEW_SHOT_CHAINS`.
        geometry: one of :data:`fssops.data.augmentation.chains.GEOMETRIES`, where nothing is cropped.
        min_area: pixels of a base class, at original size, that an image must have.
        drop_novel: leave out images that show a novel class.

    Raises:
        ValueError: an option is wrong.
        TooFewImagesError: no image is left.
    """

    seeds = 2**63 - 1

    def __init__(
        self,
        source: FewShotSource,
        base_classes: Sequence[int],
        novel_classes: Collection[int],
        size: Sequence[int] = (480, 480),
        *,
        augment: str = "none",
        geometry: str = "square",
        min_area: int = 1,
        drop_novel: bool = False,
    ) -> None:
        self.source, self.base_classes, self.novel_classes = source, tuple(base_classes), tuple(novel_classes)
        self.transform = few_shot_chain(size, augment, geometry)
        avoid = self.novel_classes if drop_novel else ()
        listed = {name for c in self.base_classes for name in source.images_of(c, min_area, avoid)}
        self.names = [name for name in source.names if name in listed]
        if not self.names:
            raise TooFewImagesError(
                f"{source.label}: the segmenter must have an image, got none of {len(source.names)} with at least "
                f"{min_area} px of a base class"
            )

    def item(self, index: int, rng: np.random.Generator) -> ProposalBatch:
        name = self.names[index]
        original = Scene(np.asarray(self.source.image(name)), {"label": self.source.label_map(name)})
        scene = with_enough(self.transform, original, rng, self.base_classes, 1)
        labels = scene.maps["label"].astype(np.int64)
        labels[np.isin(labels, self.novel_classes)] = IGNORE
        present = np.intersect1d(labels, self.base_classes)
        objects = np.where(labels == IGNORE, IGNORE, 0)
        if len(present):
            objects[labels == present[rng.integers(len(present))]] = 1
        image = normalise(scene.image)
        return ProposalBatch(image[None], torch.from_numpy(labels)[None], torch.from_numpy(objects)[None], [name])
