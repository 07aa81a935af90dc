"""Images of universal systems: augmented with masks for training, or resized for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fssops.data.augmentation.scene import DETECTRON2, Scene, Size, Transform, resized
from fssops.data.datasets.seeded_items import SeededItems
from fssops.data.errors import ImageFileError
from fssops.data.source import ImageSource
from fssops.structures import IGNORE, ImageBatch, MaskTargets
from fssops.truth import Truth, TruthKind, draw


@dataclass
class UniversalItem:
    """One image with its targets, before batching.

    Attributes:
        image: [3, H, W] uint8 RGB.
        target: None in evaluation.
        name: of the image.
        output_size: (height, width) of results; the file's own size.
    """

    image: Tensor
    target: MaskTargets | None
    name: str
    output_size: Size

    @staticmethod
    def stack(items: Sequence[UniversalItem]) -> ImageBatch:
        """Collect items; images keep their sizes."""
        targets = [item.target for item in items if item.target is not None]
        return ImageBatch(
            images=[item.image for item in items],
            targets=targets if len(targets) == len(items) else None,
            output_sizes=[item.output_size for item in items],
            names=[item.name for item in items],
        )


class TrainingDataset(SeededItems[UniversalItem]):
    """Augmented images with their masks.

    Args:
        source: images and truth.
        kind: which masks: one a class present, one an object, or one a panoptic segment.
        augmentation: see :func:`fssops.data.augmentation.chains.universal_chain`.
        keep_empty: keep objects of which augmentation leaves no pixel. The published COCO instance mapper drops them,
            those of ADE20K and Cityscapes keep them; panoptic segments are always kept.
        label_maps: give targets a label map as well (per-pixel baselines).

    Attributes:
        names: of the images; of instances without those that have none, as published.
        repeats: how often each image occurs in a pass, where it is set (:mod:`fssops.data.repeat_factors`).
        crowds: of each image of the source, whether each object is a crowd region; empty for label maps.

    Raises:
        ValueError: the source has no truth of this kind, or no image to train on.
    """

    repeats: list[float]

    def __init__(
        self,
        source: ImageSource,
        kind: TruthKind,
        augmentation: Transform,
        *,
        keep_empty: bool = False,
        label_maps: bool = False,
    ) -> None:
        if not source.offers(kind):
            raise ValueError(f"{source.label}: kind must be {source.kind}, got {kind}: the data set has no such truth")
        self.source, self.kind, self.augmentation = source, kind, augmentation
        self.keep_empty, self.label_maps = keep_empty, label_maps
        self.crowds = [] if kind == "semantic" else [source.crowds(name, kind) for name in source.names]
        self.names = source.names
        if kind == "instance":
            self.names = [name for name, crowds in zip(source.names, self.crowds, strict=True) if not all(crowds)]
        if not self.names or (self.crowds and all(map(all, self.crowds))):
            raise ValueError(
                f"{source.label}: there must be at least one object to learn from, got {len(source.names)} images "
                "without one (crowd regions, iscrowd 1, are none: some exporters mark every object so)"
            )

    def item(self, index: int, rng: np.random.Generator) -> UniversalItem:
        name = self.names[index]
        image = np.asarray(self.source.image(name))
        truth = self.source.truth(name)
        size = (image.shape[0], image.shape[1])
        check_size(self.source, name, size, (truth.height, truth.width))
        scene = self.augmentation(scene_of(image, truth, self.kind, self.source.classes.things), rng)
        target = target_of(scene, self.kind, keep_empty=self.keep_empty)
        if self.label_maps and "label" in scene.maps:
            target.label_map = torch.from_numpy(scene.maps["label"].astype(np.int64))
        return UniversalItem(to_tensor(scene.image), target, name, size)


def scene_of(image: np.ndarray, truth: Truth, kind: TruthKind, things: Sequence[int]) -> Scene:
    """An image with its truth in one form, crowds left out of the objects; ``things`` are the countable classes."""
    if kind == "instance":
        objects = [o for o in truth.instances(things) if not o.crowd]
        # Polygons stay polygons through augmentation, as published; run lengths become masks.
        outlines = [o.outline if isinstance(o.outline, list) else o.mask(truth.height, truth.width) for o in objects]
        return Scene(image, outlines=outlines, labels=[o.label for o in objects])
    if kind == "semantic":
        return Scene(image, {"label": truth.semantic()})
    maps = {"segments": truth.segment_ids, "label": truth.label_map}
    return Scene(image, {name: values for name, values in maps.items() if values is not None}, truth.segments)


def target_of(scene: Scene, kind: TruthKind, *, keep_empty: bool = False) -> MaskTargets:
    """The masks of a scene: one a class present, one an object, or one a panoptic segment.

    Args:
        scene: with the form of truth that is asked for.
        kind: which masks.
        keep_empty: keep objects without a pixel.
    """
    if kind == "semantic":
        label = scene.maps["label"]
        labels = [value for value in np.unique(label).tolist() if value != IGNORE]
        masks = [label == value for value in labels]
    elif kind == "panoptic":
        segments = [segment for segment in scene.segments if not segment.crowd]
        labels = [segment.label for segment in segments]
        masks = [scene.maps["segments"] == segment.id for segment in segments]
    else:
        masks = [draw(outline, *scene.size) for outline in scene.outlines]
        shown = [keep_empty or bool(mask.any()) for mask in masks]
        labels = [label for label, is_shown in zip(scene.labels, shown, strict=True) if is_shown]
        masks = [mask for mask, is_shown in zip(masks, shown, strict=True) if is_shown]
    stacked = np.stack(masks) if masks else np.zeros((0, *scene.size), dtype=bool)
    return MaskTargets(torch.tensor(labels, dtype=torch.int64), torch.from_numpy(stacked))


def target_at(truth: Truth, kind: TruthKind, size: Size, things: Sequence[int]) -> MaskTargets:
    """The masks of an image at another (height, width).

    Args:
        truth: of the image.
        kind: which masks.
        size: of the masks.
        things: indices of the countable classes.
    """
    blank = np.zeros((truth.height, truth.width, 3), dtype=np.uint8)
    return target_of(resized(scene_of(blank, truth, kind, things), size, DETECTRON2), kind)


def to_tensor(image: np.ndarray) -> Tensor:
    """[H, W, 3] -> [3, H, W], copied."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def check_size(source: ImageSource, name: str, image: Size, truth: Size) -> None:
    """Refuse an image of another (height, width) than its truth.

    Raises:
        ImageFileError: names both.
    """
    if image != truth:
        raise ImageFileError(
            f"{source.label}: image {name} must have the size of its annotation, {truth[1]} x {truth[0]}, "
            f"got {image[1]} x {image[0]}"
        )
