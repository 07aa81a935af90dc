"""A built-in universal data set that is drawn: countable shapes on a landscape of three regions, with panoptic truth.

Every image is a soft sky above a textured ground, sometimes with a wall at one side, and one to five shapes. A class of
things is an outline with the texture and roughly the hue that belong to it, so a small network learns it in minutes.
Everything follows from (seed, split, number of the image).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from fssops.data.generated_textures import OUTLINES, SPLITS, TEXTURES, check_options
from fssops.data.source import ImageSource
from fssops.truth import Category, Classes, Segment, Truth

STUFF = ("sky", "ground", "wall")
THINGS = ("disc", "square", "triangle", "star", "ring")
_COLOURS = ((120, 170, 230), (110, 150, 80), (160, 120, 100))
_THING_COLOURS = ((230, 60, 60), (60, 90, 230), (250, 200, 40), (170, 60, 200), (30, 200, 190))
THING_TEXTURES = ("slopes", "checks", "bars", "speckle", "spokes")

CLASSES = Classes(
    tuple(Category(i, name, _COLOURS[i]) for i, name in enumerate(STUFF))
    + tuple(Category(3 + i, name, _THING_COLOURS[i], is_thing=True) for i, name in enumerate(THINGS))
)


@dataclass(frozen=True)
class _Shape:
    kind: int
    x: float
    y: float
    radius: float
    angle: float
    colour: np.ndarray


class GeneratedScenes(ImageSource):
    """The generated scenes.

    Args:
        split: ``train``, ``val`` or ``test``: other images of the same classes.
        size: side of the square images in pixels, 32 to 512.
        images: number of images.
        seed: another seed gives other images.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, split: str = "train", *, size: int = 96, images: int = 400, seed: int = 0) -> None:
        check_options("GeneratedScenes", split, size=(size, 32, 512), images=(images, 1, 10**6), seed=(seed, 0, 2**31))
        self.size, self.seed = size, seed
        super().__init__("panoptic", split, CLASSES, [f"{split}-{number:05d}" for number in range(images)])

    def image_id(self, name: str) -> int | str:
        return int(name.rsplit("-", 1)[1])

    def image(self, name: str) -> Image.Image:
        rng, ids, shapes = self._scene(name)
        side = self.size
        y, x = np.mgrid[0:side, 0:side] / side
        canvas = np.empty((side, side, 3), dtype=np.float64)
        shades = rng.uniform(-0.08, 0.08, (3, 3))
        sky = np.array([0.45, 0.65, 0.9]) + shades[0] + 0.25 * (y[..., None] - 0.5)
        ground = np.array([0.4, 0.55, 0.3]) + shades[1] + 0.2 * (rng.random((side, side, 1)) - 0.5)
        wall = np.array([0.6, 0.45, 0.38]) + shades[2] - 0.22 * TEXTURES["bricks"](x * 12, y * 12)[..., None]
        for segment, paint in ((1, sky), (2, ground), (3, wall)):
            canvas[ids == segment] = paint[ids == segment]
        for number, shape in enumerate(shapes, start=4):
            inside = ids == number
            texture = TEXTURES[THING_TEXTURES[shape.kind]]
            brightness = texture((x - shape.x) * 14, (y - shape.y) * 14)[inside][:, None]
            canvas[inside] = shape.colour * (0.55 + 0.45 * brightness)
        canvas += rng.uniform(-0.03, 0.03, canvas.shape)
        return Image.fromarray((canvas.clip(0, 1) * 255).astype(np.uint8))

    def truth(self, name: str) -> Truth:
        _, ids, shapes = self._scene(name)
        present = set(np.unique(ids).tolist())
        labels = {1: 0, 2: 1, 3: 2, **{number: 3 + shape.kind for number, shape in enumerate(shapes, start=4)}}
        segments = [Segment(number, label) for number, label in labels.items() if number in present]
        return Truth(self.size, self.size, segment_ids=ids, segments=segments)

    def _scene(self, name: str) -> tuple[np.random.Generator, np.ndarray, list[_Shape]]:
        """A generator for the painting, segment ids (1 sky, 2 ground, 3 wall, 4.. shapes), and the shapes."""
        self.check_name(name)
        rng = np.random.default_rng([self.seed, SPLITS[self.split], int(name.rsplit("-", 1)[1])])
        side = self.size
        y, x = np.mgrid[0:side, 0:side] / side
        horizon = rng.uniform(0.3, 0.6) + 0.04 * np.sin(2 * np.pi * (rng.uniform(0.5, 2) * x + rng.random()))
        ids = np.where(y < horizon, 1, 2).astype(np.int32)
        if rng.random() < 0.6:
            edge, left = rng.uniform(0.18, 0.35), rng.random() < 0.5
            ids[(x < edge if left else x > 1 - edge) & (y > 0.15) & (y < horizon + 0.2)] = 3
        shapes = [self._shape(rng) for _ in range(1 + int(5 * rng.random()))]
        for number, shape in enumerate(shapes, start=4):
            cos, sin = np.cos(shape.angle) / shape.radius, np.sin(shape.angle) / shape.radius
            u, v = x - shape.x, y - shape.y
            square = (abs(u) < shape.radius) & (abs(v) < shape.radius)
            ids[square & OUTLINES[THINGS[shape.kind]](u * cos + v * sin, v * cos - u * sin)] = number
        return rng, ids, shapes

    def _shape(self, rng: np.random.Generator) -> _Shape:
        kind, radius = int(rng.integers(len(THINGS))), rng.uniform(0.1, 0.22)
        x, y = rng.uniform(radius * 0.7, 1 - radius * 0.7, 2)
        colour = np.array(_THING_COLOURS[kind]) / 255 + rng.uniform(-0.1, 0.1, 3)
        return _Shape(kind, float(x), float(y), float(radius), float(rng.uniform(-0.4, 0.4)), colour.clip(0, 1))
