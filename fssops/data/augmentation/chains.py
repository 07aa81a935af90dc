"""The published chains of augmentation by name, and the geometries of testing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fssops.data.augmentation.colour import ColourJitter, GaussianBlur
from fssops.data.augmentation.geometry import (
    Chain,
    LargeScaleJitter,
    Letterbox,
    ObjectCrop,
    OneOfTwo,
    Pad,
    RandomCrop,
    RandomFlip,
    RandomRangeCrop,
    RandomRotate,
    RandomScale,
    Resize,
    ResizeShortestEdge,
)
from fssops.data.augmentation.scene import MM_FORMER, Scene, Size, Transform, checked_size

GEOMETRIES: dict[str, Callable[[Size], Resize | Letterbox]] = {
    "square": Resize,
    "square_by_corners": lambda size: Resize(size, MM_FORMER),
    "letterbox": Letterbox,
}
"""How a few-shot image gets its size (height, width) where no augmentation crops: as PANet's, MM-Former's, MSANet's."""

Steps = tuple[Transform, ...]


@dataclass(frozen=True)
class _Sizes:
    """What chains are made with; each takes what it needs. See :func:`universal_chain`."""

    resize: Steps
    crop: Size
    category_share: float = 1.0
    pad: bool = True
    side: int = 1024
    scales: tuple[float, float] = (0.1, 2.0)


def _msanet(low: float, high: float, classes: tuple[int, ...] = ()) -> Callable[[_Sizes], Steps]:
    random_steps = (RandomScale(low, high), RandomRotate(), GaussianBlur(), RandomFlip())
    return lambda sizes: (*random_steps, ObjectCrop(sizes.crop, classes=classes))


def _mm_former(sizes: _Sizes) -> Steps:
    """One of eleven short sides, 320 to 960 for crops of 480 and in proportion for others."""
    factor = min(sizes.crop) / 480
    short_sides = tuple(max(1, round(side * factor)) for side in range(320, 961, 64))
    resize = ResizeShortestEdge(short_sides, max(1, round(2048 * factor)), MM_FORMER)
    # The authors pad last, so that padding is grey and to the right.
    return resize, RandomCrop(sizes.crop), ColourJitter(), RandomFlip(), Pad(sizes.crop)


def _resize_crop(sizes: _Sizes) -> Steps:
    steps: Steps = (*sizes.resize, RandomCrop(sizes.crop, sizes.category_share), ColourJitter(), RandomFlip())
    return (*steps, Pad(sizes.crop)) if sizes.pad else steps


def _detr(sizes: _Sizes) -> Steps:
    """Resize, or resize to 400, 500 or 600, cut a window of 384 to 600, and resize again."""
    crop: Steps = (ResizeShortestEdge((400, 500, 600), 1 << 30), RandomRangeCrop(384, 600))
    return (OneOfTwo(Chain((RandomFlip(), *sizes.resize)), Chain((RandomFlip(), *crop, *sizes.resize))),)


CHAINS: dict[str, Callable[[_Sizes], Steps]] = {
    "none": lambda sizes: sizes.resize,
    "flip": lambda sizes: (*sizes.resize, RandomFlip()),
    "msanet_pascal": _msanet(0.9, 1.1),
    "msanet_coco": _msanet(0.8, 1.25),
    # The published base stage looks after the pixels labelled 1 alone, whatever class that is.
    "msanet_base": _msanet(0.5, 2.0, classes=(1,)),
    "mm_former": _mm_former,
    "resize_crop": _resize_crop,
    "large_scale_jitter": lambda sizes: (RandomFlip(), LargeScaleJitter(sizes.side, *sizes.scales)),
    "detr": _detr,
}
"""Every named chain: PANet's flip; BAM's and MSANet's scale, rotation, blur, flip and crop, for the episodes of either
data set and for the base learner; MM-Former's short side, crop, colours and flip; ADE20K's and Cityscapes'; COCO's of
Mask2Former; and COCO panoptic's of MaskFormer."""

FEW_SHOT_CHAINS = ("none", "flip", "msanet_pascal", "msanet_coco", "msanet_base", "mm_former")
UNIVERSAL_CHAINS = ("none", "flip", "resize_crop", "large_scale_jitter", "detr")


def few_shot_chain(size: Sequence[int], name: str = "none", geometry: str = "square") -> Chain:
    """Build a chain for few-shot images, which all get one size.

    Args:
        size: height and width of the result.
        name: one of :data:`FEW_SHOT_CHAINS`; ``msanet_*`` and ``mm_former`` crop to ``size``.
        geometry: one of :data:`GEOMETRIES`, by which the others resize.

    Raises:
        ValueError: an unknown name, or a size that is no height and width.
    """
    height_width = checked_size("few_shot_chain", size)
    if geometry not in GEOMETRIES:
        raise ValueError(f"few_shot_chain: geometry must be one of {', '.join(GEOMETRIES)}, got {geometry!r}")
    if name not in FEW_SHOT_CHAINS:
        raise ValueError(f"few_shot_chain: augment must be one of {', '.join(FEW_SHOT_CHAINS)}, got {name!r}")
    resize = (GEOMETRIES[geometry](height_width),) if name in ("none", "flip") else ()
    return Chain(CHAINS[name](_Sizes(resize, height_width)))


def universal_chain(
    name: str,
    *,
    short_sides: Sequence[int] = (),
    longest: int = 1333,
    crop: Size | None = None,
    category_share: float = 1.0,
    pad: bool = True,
    side: int = 1024,
    scales: tuple[float, float] = (0.1, 2.0),
) -> Chain:
    """Build a chain for images and clips of universal and video systems, which keep sizes of their own.

    Args:
        name: one of :data:`UNIVERSAL_CHAINS`. ``resize_crop``: a short side, a crop, colour jitter, flip, padding.
            ``large_scale_jitter``: flip, then scale jitter and crop to ``side``. ``detr``: flip, then resize; or
            resize, crop, resize. ``flip``: resize where ``short_sides`` are given, flip. ``none``: without the flip.
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
    if name not in UNIVERSAL_CHAINS:
        raise ValueError(f"universal_chain: name must be one of {', '.join(UNIVERSAL_CHAINS)}, got {name!r}")
    if name in ("resize_crop", "detr") and not short_sides:
        raise ValueError(f"universal_chain: short_sides must be given for {name}, got none")
    if name == "resize_crop" and crop is None:
        raise ValueError("universal_chain: crop must be given for resize_crop, got None")
    resize = (ResizeShortestEdge(tuple(short_sides), longest),) if short_sides else ()
    return Chain(CHAINS[name](_Sizes(resize, crop or (0, 0), category_share, pad, side, scales)))


TRIES = 100


def with_enough(
    transform: Transform, scene: Scene, rng: np.random.Generator, classes: Sequence[int], least: int
) -> Scene:
    """Transform a scene anew, up to :data:`TRIES` times, until ``least`` pixels of some classes are left.

    Args:
        transform: random.
        scene: with a map ``label``.
        rng: of all tries.
        classes: ids in that map.
        least: pixels; 0 takes the first try.

    Returns:
        the first try that keeps enough, or the one that kept most.
    """
    best, most = scene, -1
    for _ in range(TRIES if least else 1):
        tried = transform(scene, rng)
        count = int(np.isin(tried.maps["label"], classes).sum()) if least else 0
        if count > most:
            best, most = tried, count
        if count >= least:
            break
    return best
