"""Geometry on an image and its truth together, in the published rules of detectron2.

An image is resampled by Pillow's bilinear filter on 8 bits, which widens when it shrinks. Label maps take the nearest
pixel by corners, source index ``floor(i * old / new)``; panoptic ids and masks by pixel centres; polygons keep their
fractions and are rasterised at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from fssops.data.transforms import resize_map
from fssops.structures import IGNORE
from fssops.truth import Polygons, Segment, Truth, TruthKind

IMAGE_FILL = 128
"""Value of image pixels that padding adds."""

Outline = Polygons | np.ndarray


@dataclass
class Scene:
    """An image and what is in it, all of one size.

    Attributes:
        image: uint8 [H, W, 3].
        label_map: [H, W] class indices, 255 ignored, or None.
        segment_ids: int32 [H, W], 0 void, or None.
        segments: of ``segment_ids``.
        outlines: polygons or bool masks [H, W].
        labels: class index of each outline.
    """

    image: np.ndarray
    label_map: np.ndarray | None = None
    segment_ids: np.ndarray | None = None
    segments: list[Segment] = field(default_factory=list)
    outlines: list[Outline] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[0], self.image.shape[1]


Augmentation = Callable[[Scene, np.random.Generator], Scene]
"""Draws what it needs from the generator and returns another scene."""


def _corner_nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = values.shape
    rows, columns = np.arange(size[0]) * height // size[0], np.arange(size[1]) * width // size[1]
    return np.asarray(values[rows[:, None], columns[None, :]])


def resized_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear with antialiasing: uint8 [H, W, 3] -> uint8 [size, 3]."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resized(scene: Scene, size: tuple[int, int]) -> Scene:
    """Resize to (height, width)."""
    if size == scene.size:
        return scene
    scale = np.array([size[1] / scene.size[1], size[0] / scene.size[0]])
    return replace(
        scene,
        image=resized_image(scene.image, size),
        label_map=None if scene.label_map is None else _corner_nearest(scene.label_map, size),
        segment_ids=None if scene.segment_ids is None else resize_map(scene.segment_ids, size),
        outlines=[
            resize_map(o, size) if isinstance(o, np.ndarray) else [polygon * scale for polygon in o]
            for o in scene.outlines
        ],
    )


def cropped(scene: Scene, top: int, left: int, height: int, width: int) -> Scene:
    """Cut a window; what lies outside the image is left away."""
    window = (slice(top, top + height), slice(left, left + width))
    offset = np.array([left, top], dtype=np.float64)
    return replace(
        scene,
        image=scene.image[window],
        label_map=None if scene.label_map is None else scene.label_map[window],
        segment_ids=None if scene.segment_ids is None else scene.segment_ids[window],
        outlines=[
            o[window] if isinstance(o, np.ndarray) else [polygon - offset for polygon in o] for o in scene.outlines
        ],
    )


def flipped(scene: Scene) -> Scene:
    """Mirror left and right."""
    width = scene.size[1]

    def mirrored(polygon: np.ndarray) -> np.ndarray:
        return np.stack([width - polygon[:, 0], polygon[:, 1]], axis=1)

    return replace(
        scene,
        image=scene.image[:, ::-1],
        label_map=None if scene.label_map is None else scene.label_map[:, ::-1],
        segment_ids=None if scene.segment_ids is None else scene.segment_ids[:, ::-1],
        outlines=[o[:, ::-1] if isinstance(o, np.ndarray) else [mirrored(p) for p in o] for o in scene.outlines],
    )


def padded(scene: Scene, height: int, width: int) -> Scene:
    """Extend to the right and below to at least (height, width): image 128, labels 255, everything else empty."""
    below, right = max(0, height - scene.size[0]), max(0, width - scene.size[1])
    if not below and not right:
        return scene

    def extended(values: np.ndarray, fill: int) -> np.ndarray:
        margins = [(0, below), (0, right)] + [(0, 0)] * (values.ndim - 2)
        return np.pad(values, margins, constant_values=fill)

    return replace(
        scene,
        image=extended(scene.image, IMAGE_FILL),
        label_map=None if scene.label_map is None else extended(scene.label_map, IGNORE),
        segment_ids=None if scene.segment_ids is None else extended(scene.segment_ids, 0),
        outlines=[extended(o, 0) if isinstance(o, np.ndarray) else o for o in scene.outlines],
    )


def shortest_edge_size(size: tuple[int, int], short: int, longest: int) -> tuple[int, int]:
    """(height, width) of at least 1 whose shorter side is ``short``; less where the longer would exceed ``longest``."""
    height, width = size
    scale = short / min(height, width)
    new_height, new_width = (short * 1.0, scale * width) if height < width else (scale * height, short * 1.0)
    if max(new_height, new_width) > longest:
        again = longest / max(new_height, new_width)
        new_height, new_width = new_height * again, new_width * again
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


@dataclass(frozen=True)
class ResizeShortestEdge:
    """Resize to one of several short sides, drawn evenly; the long side is limited."""

    short_sides: tuple[int, ...]
    longest: int

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        short = self.short_sides[int(rng.integers(len(self.short_sides)))]
        return resized(scene, shortest_edge_size(scene.size, short, self.longest))


@dataclass(frozen=True)
class RandomFlip:
    """Mirror with probability ``p``."""

    p: float = 0.5

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        return flipped(scene) if rng.random() < self.p else scene


@dataclass(frozen=True)
class RandomCrop:
    """Cut a window of ``size`` (or the whole side where the image is smaller) at an even offset.

    With ``category_share`` below 1 the window is drawn again, up to ten times, until more than one class is in it and
    the largest covers less than that share of the labelled pixels; the last one is used whatever it holds. All
    published settings have 1.0, which draws once.
    """

    size: tuple[int, int]
    category_share: float = 1.0

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        height, width = min(self.size[0], scene.size[0]), min(self.size[1], scene.size[1])
        for _ in range(1 if self.category_share >= 1.0 or scene.label_map is None else 10):
            top = int(rng.integers(scene.size[0] - height + 1))
            left = int(rng.integers(scene.size[1] - width + 1))
            if self.category_share >= 1.0 or scene.label_map is None:
                break
            labels, counts = np.unique(scene.label_map[top : top + height, left : left + width], return_counts=True)
            counts = counts[labels != IGNORE]
            if len(counts) > 1 and counts.max() < self.category_share * counts.sum():
                break
        return cropped(scene, top, left, height, width)


@dataclass(frozen=True)
class RandomRangeCrop:
    """Cut a window whose height and width are drawn evenly between two limits (DETR's, for COCO panoptic)."""

    least: int
    most: int

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        height, width = (int(rng.integers(min(side, self.least), min(side, self.most) + 1)) for side in scene.size)
        top = int(rng.integers(scene.size[0] - height + 1))
        left = int(rng.integers(scene.size[1] - width + 1))
        return cropped(scene, top, left, height, width)


@dataclass(frozen=True)
class LargeScaleJitter:
    """Fit the image into ``side`` times a random factor, cut ``side`` x ``side``, pad what is missing.

    One random number places the window on both axes, as published.
    """

    side: int
    least: float = 0.1
    most: float = 2.0

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        target = self.side * rng.uniform(self.least, self.most)
        scale = min(target / scene.size[0], target / scene.size[1])
        height, width = np.maximum(np.round(np.multiply(scene.size, scale)).astype(int), 1).tolist()
        scene = resized(scene, (height, width))
        room = np.maximum(np.subtract((height, width), self.side), 0)
        top, left = np.round(room * rng.uniform(0.0, 1.0)).astype(int).tolist()
        return padded(cropped(scene, top, left, self.side, self.side), self.side, self.side)


@dataclass(frozen=True)
class Pad:
    """Extend to the right and below to at least ``size``."""

    size: tuple[int, int]

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        return padded(scene, *self.size)


@dataclass(frozen=True)
class OneOfTwo:
    """``first`` or ``second``, each with probability one half (the coin is drawn before either draws)."""

    first: tuple[Augmentation, ...]
    second: tuple[Augmentation, ...]

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        for step in self.first if rng.random() > 0.5 else self.second:
            scene = step(scene, rng)
        return scene


def scene_of(image: np.ndarray, truth: Truth, kind: TruthKind, things: Sequence[int]) -> Scene:
    """An image with its truth in one form, crowds left out of the objects; ``things`` are the countable classes."""
    if kind == "semantic":
        return Scene(image, label_map=truth.semantic())
    if kind == "panoptic":
        return Scene(image, segment_ids=truth.segment_ids, segments=truth.segments, label_map=truth.label_map)
    objects = [o for o in truth.instances(things) if not o.crowd]
    return Scene(image, outlines=[o.outline for o in objects], labels=[o.label for o in objects])
