"""Geometric augmentations: each draws what it needs and moves a whole scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fssops.data.augmentation.scene import (
    BLACK,
    DETECTRON2,
    MEAN_COLOUR,
    MSANET,
    PANET,
    Resampling,
    Scene,
    Size,
    Transform,
    cropped,
    flipped,
    padded,
    resized,
    rotated,
)
from fssops.labels import IGNORE

# Without chance: the generator may be left out.


@dataclass(frozen=True)
class Resize:
    """Resize to ``size`` (height, width), whatever the aspect; PANet's only geometry."""

    size: Size
    rules: Resampling = PANET

    def inner_size(self, height: int, width: int) -> Size:
        """(height, width) that a picture of that size fills from the top left: all of it."""
        return self.size

    def __call__(self, scene: Scene, rng: np.random.Generator | None = None) -> Scene:
        return resized(scene, self.size, self.rules)


@dataclass(frozen=True)
class Letterbox:
    """Scale the longer side to that of a square, floor both sides to a multiple of 8, paste top left on black.

    MSANet's evaluation geometry: the aspect is kept up to the flooring.

    Raises:
        ValueError: ``size`` is no square, as published.
    """

    size: Size
    multiple: int = 8

    def __post_init__(self) -> None:
        """Refuse what is not square."""
        if self.size[0] != self.size[1]:
            raise ValueError(f"Letterbox: size must be square, got {self.size}")

    def inner_size(self, height: int, width: int) -> Size:
        """(height, width) that a picture of that size fills from the top left."""
        side = self.size[0]
        ratio = side / max(height, width)
        inner = (side, int(width * ratio)) if height >= width else (int(height * ratio), side)
        # A picture so narrow that flooring leaves nothing keeps a strip; the published code fails on it.
        return max(inner[0] // self.multiple * self.multiple, 1), max(inner[1] // self.multiple * self.multiple, 1)

    def __call__(self, scene: Scene, rng: np.random.Generator | None = None) -> Scene:
        return padded(resized(scene, self.inner_size(*scene.size), MSANET), self.size, colour=BLACK)


@dataclass(frozen=True)
class Pad:
    """Extend to the right and below to at least ``size``, grey."""

    size: Size

    def __call__(self, scene: Scene, rng: np.random.Generator | None = None) -> Scene:
        return padded(scene, self.size)


# With chance.


@dataclass(frozen=True)
class RandomFlip:
    """Mirror left and right with probability ``p``."""

    p: float = 0.5

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        return flipped(scene) if rng.random() < self.p else scene


@dataclass(frozen=True)
class RandomScale:
    """Scale both sides by a factor uniform in [low, high] (BAM, MSANet)."""

    low: float
    high: float

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        factor = rng.uniform(self.low, self.high)
        height, width = (max(1, round(side * factor)) for side in scene.size)
        return resized(scene, (height, width), MSANET)


def shortest_edge_size(size: Size, short: int, longest: int) -> Size:
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
    rules: Resampling = DETECTRON2

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        short = self.short_sides[int(rng.integers(len(self.short_sides)))]
        return resized(scene, shortest_edge_size(scene.size, short, self.longest), self.rules)


@dataclass(frozen=True)
class RandomRotate:
    """With probability ``p`` turn about the centre by an angle uniform in [-degrees, degrees], size kept."""

    degrees: float = 10.0
    p: float = 0.5

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        return rotated(scene, rng.uniform(-self.degrees, self.degrees)) if rng.random() < self.p else scene


def _window(scene: Scene, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a window at an even offset."""
    top = int(rng.integers(scene.size[0] - height + 1))
    return top, int(rng.integers(scene.size[1] - width + 1))


@dataclass(frozen=True)
class RandomCrop:
    """Cut a window of ``size`` (or the whole side where the image is smaller) at an even offset.

    With ``category_share`` below 1 the window is drawn again, up to ten times, until more than one class is in it and
    the largest covers less than that share of the labelled pixels; the last one is used whatever it holds. All
    published settings have 1.0, which draws once.
    """

    size: Size
    category_share: float = 1.0

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        height, width = min(self.size[0], scene.size[0]), min(self.size[1], scene.size[1])
        label = scene.maps.get("label") if self.category_share < 1.0 else None
        for _ in range(10):
            top, left = _window(scene, height, width, rng)
            if label is None:
                break
            labels, counts = np.unique(label[top : top + height, left : left + width], return_counts=True)
            counts = counts[labels != IGNORE]
            if len(counts) > 1 and counts.max() < self.category_share * counts.sum():
                break
        return cropped(scene, top, left, height, width)


@dataclass(frozen=True)
class ObjectCrop:
    """Cut a window of ``size`` that keeps the objects; smaller images are first padded, centred, with the mean colour.

    The window is drawn again, up to ``tries`` times, while it keeps less than ``keep`` of the pixels of ``classes`` in
    the map ``label`` (BAM, MSANet: 0.85 and 31); without ``classes`` every label but 0 and 255 counts.
    """

    size: Size
    keep: float = 0.85
    tries: int = 31
    classes: tuple[int, ...] = ()

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        top, left = (max(0, new - old) // 2 for new, old in zip(self.size, scene.size, strict=True))
        scene = padded(scene, self.size, top=top, left=left, colour=MEAN_COLOUR)
        label = scene.maps.get("label")
        if label is not None:
            inside = np.isin(label, self.classes) if self.classes else (label != 0) & (label != IGNORE)
            total = int(inside.sum())
        for _ in range(1 + self.tries):
            top, left = _window(scene, *self.size, rng)
            if label is None:
                break
            window = inside[top : top + self.size[0], left : left + self.size[1]]
            if int(window.sum()) >= self.keep * total:
                break
        return cropped(scene, top, left, *self.size)


@dataclass(frozen=True)
class RandomRangeCrop:
    """Cut a window whose height and width are drawn evenly between two limits (DETR's, for COCO panoptic)."""

    least: int
    most: int

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        height, width = (int(rng.integers(min(side, self.least), min(side, self.most) + 1)) for side in scene.size)
        return cropped(scene, *_window(scene, height, width, rng), height, width)


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
        scene = resized(scene, (height, width), DETECTRON2)
        room = np.maximum(np.subtract((height, width), self.side), 0)
        top, left = np.round(room * rng.uniform(0.0, 1.0)).astype(int).tolist()
        return padded(cropped(scene, top, left, self.side, self.side), (self.side, self.side))


# Steps made of steps.


@dataclass(frozen=True)
class Chain:
    """Steps one after another."""

    steps: tuple[Transform, ...]

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        for step in self.steps:
            scene = step(scene, rng)
        return scene


@dataclass(frozen=True)
class OneOfTwo:
    """``first`` or ``second``, each with probability one half (the coin is drawn before either draws)."""

    first: Transform
    second: Transform

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        return self.first(scene, rng) if rng.random() > 0.5 else self.second(scene, rng)
