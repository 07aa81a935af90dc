"""The published chains of augmentation by name, with their sizes as parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fssops.data.universal.colour import ColourJitter
from fssops.data.universal.geometry import (
    Augmentation,
    LargeScaleJitter,
    OneOfTwo,
    Pad,
    RandomCrop,
    RandomFlip,
    RandomRangeCrop,
    ResizeShortestEdge,
    Scene,
)

PipelineName = Literal["none", "flip", "resize_crop", "large_scale_jitter", "detr"]


@dataclass(frozen=True)
class Pipeline:
    """Augmentations one after another."""

    steps: tuple[Augmentation, ...]

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        for step in self.steps:
            scene = step(scene, rng)
        return scene


def pipeline(
    name: PipelineName,
    *,
    short_sides: Sequence[int] = (),
    longest: int = 1333,
    crop: tuple[int, int] | None = None,
    category_share: float = 1.0,
    pad: bool = True,
    side: int = 1024,
    scales: tuple[float, float] = (0.1, 2.0),
) -> Pipeline:
    """Build a chain.

    Args:
        name: ``resize_crop``: short side from ``short_sides``, crop, colour jitter, flip, padding to the crop's size
            (ADE20K, Cityscapes). ``large_scale_jitter``: flip, then scale jitter and crop to ``side`` (COCO,
            Mask2Former). ``detr``: flip, then one of resize, or resize to 400, 500 or 600, crop of 384 to 600, resize
            (COCO panoptic, MaskFormer). ``flip``: flip, and resize where ``short_sides`` are given. ``none``:
            ``flip`` without the flip.
        short_sides: sizes of the shorter side to draw from.
        longest: limit for the other side.
        crop: height and width.
        category_share: see :class:`RandomCrop`.
        pad: pad smaller crops to the crop's size.
        side: of the result of ``large_scale_jitter``.
        scales: least and largest factor of ``large_scale_jitter``.

    Raises:
        ValueError: an unknown name, or a size that the chain needs is missing.
    """
    resize = ResizeShortestEdge(tuple(short_sides), longest) if short_sides else None
    if name in ("none", "flip"):
        resizing: tuple[Augmentation, ...] = () if resize is None else (resize,)
        return Pipeline(resizing if name == "none" else (*resizing, RandomFlip()))
    if name == "large_scale_jitter":
        return Pipeline((RandomFlip(), LargeScaleJitter(side, *scales)))
    if resize is None:
        raise ValueError(f"pipeline: short_sides must be given for {name}, got none")
    if name == "resize_crop":
        if crop is None:
            raise ValueError("pipeline: crop must be given for resize_crop, got None")
        steps: list[Augmentation] = [resize, RandomCrop(crop, category_share), ColourJitter(), RandomFlip()]
        return Pipeline((*steps, Pad(crop)) if pad else tuple(steps))
    if name == "detr":
        before = ResizeShortestEdge((400, 500, 600), 1 << 30)
        flip = RandomFlip()
        return Pipeline((OneOfTwo((flip, resize), (flip, before, RandomRangeCrop(384, 600), resize)),))
    raise ValueError(f"pipeline: name must be none, flip, resize_crop, large_scale_jitter or detr, got {name!r}")
