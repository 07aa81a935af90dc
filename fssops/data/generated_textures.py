"""A built-in data set that is drawn, not downloaded: textured objects on soft backgrounds.

A class is a texture (kind and scale) on an outline of its own, e.g. "fine bricks on a star". Colours are drawn anew for
every object, so colour tells nothing: a network has to learn to match textures, and what it learns carries over to
textures that it never saw. Every image also holds one to three objects of other classes.

Everything follows from (seed, split, number of the image); an image takes a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fssops.data.source import ImageSource
from fssops.truth import Classes, Truth

Array = np.ndarray

GROUPS = 4
"""Distractors come from classes with the same number modulo 4. Under the interleaved split into four folds
(``folds.by_name("generated", ...)``) a training image therefore never holds a novel class."""

SPLITS = {"train": 0, "val": 1, "test": 2}
"""Splits of everything that is drawn, and their place in seeds."""


def check_options(where: str, split: str, **limits: tuple[object, int, int | None]) -> None:
    """Check the split, and options given as (value, least, greatest or None).

    Raises:
        ValueError: names the first that is out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"{where}: split must be one of {', '.join(SPLITS)}, got {split!r}")
    for name, (value, least, greatest) in limits.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < least or (greatest is not None and value > greatest):  # type: ignore[operator]
            rule = f"of at least {least}" if greatest is None else f"from {least} to {greatest}"
            raise ValueError(f"{where}: {name} must be an integer {rule}, got {value!r}")


OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda u, v: u * u + v * v < 0.8,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.8,
    "triangle": lambda u, v: (v < 0.6) & (v > 1.8 * abs(u) - 1.0),
    "star": lambda u, v: np.hypot(u, v) < 0.7 + 0.28 * np.cos(5.0 * np.arctan2(v, u)),
    "ring": lambda u, v: abs(u * u + v * v - 0.535) < 0.415,
    "plus": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.42) & (np.maximum(abs(u), abs(v)) < 0.95),
    "ellipse": lambda u, v: u * u / 0.95 + v * v / 0.4 < 1.0,
}
"""Outline name -> whether (u, v), each in [-1, 1] and turned with the object, lies inside."""


def _wave(x: Array) -> Array:
    """Triangle wave of period 1 in [0, 1]."""
    return abs(2.0 * (x - np.floor(x)) - 1.0)


def _speckle(x: Array, y: Array) -> Array:
    # A hash of the cell: random-looking, yet a function of place alone.
    cell = np.floor(2.0 * x) * 127.1 + np.floor(2.0 * y) * 311.7
    return np.modf(abs(np.sin(cell) * 43758.5453))[0]


def _bricks(x: Array, y: Array) -> Array:
    row = np.floor(1.4 * y)
    return ((_wave(1.4 * y) > 0.72) | (_wave(0.7 * x + 0.5 * row) > 0.85)).astype(np.float64)


TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "bars": lambda x, y: (_wave(y) > 0.5).astype(np.float64),
    "posts": lambda x, y: (_wave(x) > 0.5).astype(np.float64),
    "diagonals": lambda x, y: (_wave(0.7 * (x + y)) > 0.5).astype(np.float64),
    "checks": lambda x, y: ((_wave(0.7 * x) > 0.5) ^ (_wave(0.7 * y) > 0.5)).astype(np.float64),
    "dots": lambda x, y: ((_wave(0.8 * x) - 0.5) ** 2 + (_wave(0.8 * y) - 0.5) ** 2 < 0.09).astype(np.float64),
    "rings": lambda x, y: (_wave(0.9 * np.hypot(x, y)) > 0.5).astype(np.float64),
    "waves": lambda x, y: (_wave(y + 0.7 * _wave(0.4 * x)) > 0.5).astype(np.float64),
    "ripples": lambda x, y: (_wave(x + 0.7 * _wave(0.4 * y)) > 0.5).astype(np.float64),
    "grid": lambda x, y: (np.maximum(_wave(0.8 * x), _wave(0.8 * y)) > 0.75).astype(np.float64),
    "bricks": _bricks,
    "speckle": _speckle,
    "spokes": lambda x, y: (_wave(np.arctan2(y, x) * (3.5 / np.pi)) > 0.5).astype(np.float64),
    "diamonds": lambda x, y: ((_wave(0.5 * (x + y)) > 0.5) ^ (_wave(0.5 * (x - y)) > 0.5)).astype(np.float64),
    "slopes": lambda x, y: _wave(0.35 * y),
}
"""Texture name -> brightness in [0, 1] at (x, y), in units of the period, measured from the object's centre plus a
random shift. None changes its class when mirrored left to right."""

PERIODS = {"fine": 0.06, "coarse": 0.12}
"""Period of a texture as a share of the image's side."""


def class_names() -> list[str]:
    """Names of the 28 classes, whose numbers start at 1; the two scales of a texture have different outlines."""
    outlines = list(OUTLINES)
    kinds = [(scale, texture) for texture in TEXTURES for scale in PERIODS]
    return [
        f"{scale} {texture} {outlines[(3 * number) % len(outlines)]}"
        for number, (scale, texture) in enumerate(kinds, start=1)
    ]


CLASSES = Classes.from_names(["background", *class_names()])
"""The background and the 28 classes."""


@dataclass(frozen=True)
class _Object:
    class_id: int
    x: float
    y: float
    radius: float
    angle: float
    shift: tuple[float, float]
    colours: Array  # [2, 3] in 0..1


class GeneratedTextures(ImageSource):
    """The generated textures; class 0 is the background.

    Args:
        split: ``train``, ``val`` or ``test``: other images of the same classes.
        size: side of the square images in pixels, 32 to 512.
        images_per_class: each class is the main object of this many images; it appears in others as distractor.
        seed: another seed gives other images of the same classes.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, split: str = "train", *, size: int = 96, images_per_class: int = 40, seed: int = 0) -> None:
        check_options(
            "GeneratedTextures",
            split,
            size=(size, 32, 512),
            images_per_class=(images_per_class, 1, None),
            seed=(seed, 0, None),
        )
        self.size = size
        self.images_per_class = images_per_class
        self.seed = seed
        self._kinds = [(texture, scale) for texture in TEXTURES for scale in PERIODS]
        names = [f"{split}-{number:05d}" for number in range(len(self._kinds) * images_per_class)]
        super().__init__("semantic", split, CLASSES, names)

    def image(self, name: str) -> Image.Image:
        rng, objects = self._scene(name)
        canvas = self._background(rng)
        for thing in objects:
            window, inside, x, y = self._inside(thing)
            texture, scale = self._kinds[thing.class_id - 1]
            period = PERIODS[scale] * self.size
            brightness = TEXTURES[texture](x / period + thing.shift[0], y / period + thing.shift[1])
            brightness = brightness[inside][:, None].astype(np.float32)
            canvas[window][inside] = thing.colours[0] + brightness * (thing.colours[1] - thing.colours[0])
        canvas += 0.06 * rng.random(canvas.shape, dtype=np.float32) - 0.03
        return Image.fromarray((canvas.clip(0.0, 1.0) * 255.0).astype(np.uint8))

    def truth(self, name: str) -> Truth:
        return Truth(self.size, self.size, label_map=self._drawn(name)[0])

    def object_numbers(self, name: str) -> np.ndarray:
        """Objects are numbered from 1 in the order they were drawn."""
        return self._drawn(name)[1]

    def _drawn(self, name: str) -> tuple[Array, Array]:
        """Class uint8 [size, size] and number of the object int32 of every pixel."""
        _, objects = self._scene(name)
        labels, numbers = (np.zeros((self.size, self.size), dtype=kind) for kind in (np.uint8, np.int32))
        for number, thing in enumerate(objects, start=1):
            window, inside, _, _ = self._inside(thing)
            labels[window][inside], numbers[window][inside] = thing.class_id, number
        return labels, numbers

    def identity(self) -> Mapping[str, object]:
        return {"size": self.size, "images_per_class": self.images_per_class, "seed": self.seed}

    def _scene(self, name: str) -> tuple[np.random.Generator, list[_Object]]:
        """The objects of an image, the main one last and thus on top, and the generator for its background."""
        self.check_name(name)
        index = int(name.rsplit("-", 1)[1])
        rng = np.random.default_rng([self.seed, SPLITS[self.split], index])
        main = index % len(self._kinds) + 1
        others = [c for c in range(1, len(self._kinds) + 1) if c != main and (c - main) % GROUPS == 0]
        wanted = [others[int(rng.random() * len(others))] for _ in range(1 + int(rng.random() * 3))]
        wanted = ([main] if rng.random() < 0.25 else []) + wanted
        objects = [self._object(rng, main, 0.19 + 0.11 * rng.random(), [])]
        for class_id in wanted:
            objects.append(self._object(rng, class_id, 0.13 + 0.09 * rng.random(), objects))
        return rng, objects[::-1]

    def _object(self, rng: np.random.Generator, class_id: int, radius: float, placed: list[_Object]) -> _Object:
        best, best_gap = (0.5, 0.5), -np.inf
        for _ in range(6):
            # The place, of six, that overlaps the others least.
            x, y = radius + (1 - 2 * radius) * rng.random(2)
            gap = min((np.hypot(x - o.x, y - o.y) - radius - o.radius for o in placed), default=0.0)
            if gap > best_gap:
                best, best_gap = (float(x), float(y)), gap
            if gap >= 0:
                break
        dark = 0.05 + 0.4 * rng.random(3)
        light = np.minimum(dark + 0.3 + 0.3 * rng.random(3), 1.0)
        colours = np.stack([dark, light] if rng.random() < 0.5 else [light, dark]).astype(np.float32)
        shift = tuple((rng.random(2) - 0.5) * 0.8)
        angle = float(rng.random() - 0.5)
        return _Object(class_id, best[0], best[1], radius, angle, (float(shift[0]), float(shift[1])), colours)

    def _inside(self, thing: _Object) -> tuple[tuple[slice, slice], Array, Array, Array]:
        """Window of an object, which of its pixels are inside, and pixel offsets (x, y) from its centre."""
        cx, cy, radius = thing.x * self.size, thing.y * self.size, thing.radius * self.size
        top, left = max(0, int(cy - radius)), max(0, int(cx - radius))
        bottom, right = min(self.size, int(cy + radius) + 1), min(self.size, int(cx + radius) + 1)
        y = np.arange(top, bottom)[:, None] + 0.5 - cy
        x = np.arange(left, right)[None, :] + 0.5 - cx
        cos, sin = np.cos(thing.angle) / radius, np.sin(thing.angle) / radius
        outline = list(OUTLINES)[(3 * thing.class_id) % len(OUTLINES)]
        inside = OUTLINES[outline](x * cos + y * sin, y * cos - x * sin)
        window = (slice(top, bottom), slice(left, right))
        ys, xs = np.broadcast_arrays(y, x)
        return window, inside, xs, ys

    def _background(self, rng: np.random.Generator) -> Array:
        """Soft colour clouds with a little grain: nothing that looks like a class."""
        cells = 3 + int(rng.random() * 4)
        base, spread = 0.2 + 0.6 * rng.random(3), 0.1 + 0.25 * rng.random()
        coarse = base + spread * (rng.random((cells, cells, 3)) - 0.5)
        small = Image.fromarray((coarse.clip(0, 1) * 255).astype(np.uint8))
        return np.asarray(small.resize((self.size, self.size), Image.Resampling.BICUBIC), dtype=np.float32) / 255.0
