"""Sources as data sets for training and evaluation: augmented images with masks, or resized images with their truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fssops.data.errors import ImageFileError
from fssops.data.source import ImageSource
from fssops.data.universal.geometry import Augmentation, Scene, resized, resized_image, scene_of, shortest_edge_size
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
    output_size: tuple[int, int]

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


class TrainingDataset(Dataset[UniversalItem]):
    """Augmented images with their masks.

    Args:
        source: images and truth.
        kind: which masks: one a class present, one an object, or one a panoptic segment.
        augmentation: see :func:`fssops.data.universal.pipelines.pipeline`.
        keep_empty: keep objects of which augmentation leaves no pixel. The published COCO instance mapper drops them,
            those of ADE20K and Cityscapes keep them; panoptic segments are always kept.
        label_maps: give targets a label map as well (per-pixel baselines).

    Raises:
        ValueError: the source has no truth of this kind.
    """

    def __init__(
        self,
        source: ImageSource,
        kind: TruthKind,
        augmentation: Augmentation,
        *,
        keep_empty: bool = False,
        label_maps: bool = False,
    ) -> None:
        if not source.offers(kind):
            raise ValueError(f"{source.label}: kind must be {source.kind}, got {kind}: the data set has no such truth")
        self.source, self.kind, self.augmentation = source, kind, augmentation
        self.keep_empty, self.label_maps = keep_empty, label_maps
        self.names = source.training_names(kind)
        if not self.names:
            raise ValueError(f"{source.label}: there must be at least one image with an annotation, got none")

    def __len__(self) -> int:
        return len(self.names)

    def draw(self, index: int, generator: torch.Generator) -> UniversalItem:
        """Item ``index``; every random choice comes from ``generator``."""
        seed = int(torch.randint(0, 1 << 62, (), generator=generator))
        return self.item(index, np.random.default_rng(seed))

    def __getitem__(self, index: int) -> UniversalItem:
        return self.item(index, np.random.default_rng(index))

    def item(self, index: int, rng: np.random.Generator) -> UniversalItem:
        """Item ``index`` with random choices from a NumPy generator."""
        name = self.names[index]
        image = np.asarray(self.source.image(name))
        truth = self.source.truth(name)
        check_size(self.source, name, image.shape[:2], (truth.height, truth.width))
        scene = self.augmentation(scene_of(image, truth, self.kind, self.source.classes.things), rng)
        target = target_of(scene, self.kind, keep_empty=self.keep_empty)
        if self.label_maps and scene.label_map is not None:
            target.label_map = torch.from_numpy(np.ascontiguousarray(scene.label_map)).long()
        return UniversalItem(to_tensor(scene.image), target, name, image.shape[:2])


def target_of(scene: Scene, kind: TruthKind, *, keep_empty: bool = False) -> MaskTargets:
    """The masks of a scene: one a class present, one an object, or one a panoptic segment.

    Args:
        scene: with the form of truth that is asked for.
        kind: which masks.
        keep_empty: keep objects without a pixel.
    """
    height, width = scene.size
    labels: list[int] = []
    masks: list[np.ndarray] = []
    if kind == "semantic":
        assert scene.label_map is not None
        for label in np.unique(scene.label_map).tolist():
            if label != IGNORE:
                labels.append(label)
                masks.append(scene.label_map == label)
    elif kind == "panoptic":
        assert scene.segment_ids is not None
        for segment in scene.segments:
            if not segment.crowd:
                labels.append(segment.label)
                masks.append(scene.segment_ids == segment.id)
    else:
        for label, outline in zip(scene.labels, scene.outlines, strict=True):
            mask = draw(outline, height, width)
            if keep_empty or mask.any():
                labels.append(label)
                masks.append(mask)
    stacked = np.stack(masks) if masks else np.zeros((0, height, width), dtype=bool)
    return MaskTargets(torch.tensor(labels, dtype=torch.int64), torch.from_numpy(stacked))


def target_at(truth: Truth, kind: TruthKind, size: tuple[int, int], things: Sequence[int]) -> MaskTargets:
    """The masks of an image at another (height, width).

    Args:
        truth: of the image.
        kind: which masks.
        size: of the masks.
        things: indices of the countable classes.
    """
    blank = np.zeros((truth.height, truth.width, 3), dtype=np.uint8)
    return target_of(resized(scene_of(blank, truth, kind, things), size), kind)


class EvaluationDataset(Dataset[UniversalItem]):
    """Images resized for testing; results come back at the file's own size.

    Args:
        source: images.
        short_side: of the resized image; 0 keeps its size.
        longest: limit for the other side.
        names: images to take; None all.
    """

    def __init__(
        self, source: ImageSource, short_side: int = 0, longest: int = 1333, names: Sequence[str] | None = None
    ) -> None:
        self.source, self.short_side, self.longest = source, short_side, longest
        self.names = list(source.names if names is None else names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> UniversalItem:
        image = np.asarray(self.source.image(self.names[index]))
        return evaluation_item(image, self.names[index], self.short_side, self.longest)


def evaluation_item(image: np.ndarray, name: str, short_side: int, longest: int) -> UniversalItem:
    """An image [H, W, 3] as a model sees it in testing."""
    size = (image.shape[0], image.shape[1])
    seen = resized_image(image, shortest_edge_size(size, short_side, longest)) if short_side else image
    return UniversalItem(to_tensor(seen), None, name, size)


def to_tensor(image: np.ndarray) -> Tensor:
    """[H, W, 3] -> [3, H, W], copied."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)).copy())


def check_size(source: ImageSource, name: str, image: tuple[int, ...], truth: tuple[int, int]) -> None:
    """Refuse an image of another (height, width) than its truth.

    Raises:
        ImageFileError: names both.
    """
    if image != truth:
        raise ImageFileError(
            f"{source.label}: image {name} must have the size of its annotation, {truth[1]} x {truth[0]}, "
            f"got {image[1]} x {image[0]}"
        )
