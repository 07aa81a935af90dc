"""MM-Former's training augmentation for few-shot images: a random short side, a crop, SSD's colours, a flip, padding.

detectron2's steps, in its rules: images by Pillow's bilinear filter on 8 bits, maps to the nearest pixel by corners.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from fssops.data.transforms import FILL, Sample, resize_map_by_corners
from fssops.data.universal.colour import ColourJitter
from fssops.data.universal.geometry import IMAGE_FILL, Scene, shortest_edge_size

SIDES = tuple(range(320, 961, 64))
"""Short sides that are drawn from, for crops of :data:`CROP`; for other crops in proportion."""

CROP = 480
LONGEST = 2048


@dataclass(frozen=True)
class RandomShortSide:
    """Scale the short side to one of ``sides``; less where the long side would exceed ``longest``."""

    sides: tuple[int, ...]
    longest: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = shortest_edge_size(sample.size, self.sides[int(rng.integers(len(self.sides)))], self.longest)
        size = (max(1, height), max(1, width))
        picture = Image.fromarray(sample.image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return Sample(np.asarray(picture), {key: resize_map_by_corners(m, size) for key, m in sample.maps.items()})


@dataclass(frozen=True)
class Crop:
    """Cut a random window of at most ``size``."""

    size: tuple[int, int]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = (min(have, wanted) for have, wanted in zip(sample.size, self.size, strict=True))
        top = int(rng.integers(sample.size[0] - height + 1))
        left = int(rng.integers(sample.size[1] - width + 1))
        window = (slice(top, top + height), slice(left, left + width))
        return Sample(sample.image[window], {key: values[window] for key, values in sample.maps.items()})


@dataclass(frozen=True)
class Pad:
    """Extend to ``size`` to the right and below, grey and :data:`FILL`."""

    size: tuple[int, int]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if sample.size == self.size:
            return sample
        height, width = sample.size
        image = np.full((*self.size, 3), IMAGE_FILL, dtype=np.uint8)
        image[:height, :width] = sample.image
        maps = {}
        for key, values in sample.maps.items():
            maps[key] = np.full(self.size, FILL.get(key, 0), dtype=values.dtype)
            maps[key][:height, :width] = values
        return Sample(image, maps)


@dataclass(frozen=True)
class Colours:
    """SSD's colour jitter on the image; see :class:`fssops.data.universal.colour.ColourJitter`."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return Sample(ColourJitter()(Scene(np.ascontiguousarray(sample.image)), rng).image, sample.maps)


def short_sides(size: tuple[int, int]) -> tuple[tuple[int, ...], int]:
    """Short sides and the longest side for crops of a size."""
    factor = min(size) / CROP
    return tuple(max(1, round(side * factor)) for side in SIDES), max(1, round(LONGEST * factor))
