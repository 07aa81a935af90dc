"""A built-in video data set that is drawn: shapes that drift and turn over a soft ground, hide, leave and return.

A class is an outline with the texture and roughly the hue that belong to it (those of the generated scenes), so a small
network learns it in minutes. Shapes pass in front of each other, bounce off the edges, and every third is out of sight
for some frames in the middle. Everything follows from (seed, split, number of the video).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from fssops.data.generated_scenes import CLASSES as SCENE_CLASSES
from fssops.data.generated_scenes import THING_TEXTURES, THINGS
from fssops.data.generated_textures import OUTLINES, SPLITS, TEXTURES, check_options
from fssops.data.source import VideoSource
from fssops.truth import Category, Classes, TrackTruth

CLASSES = Classes(
    tuple(
        Category(number, category.name, category.colour, is_thing=True)
        for number, category in enumerate((SCENE_CLASSES.categories[i] for i in SCENE_CLASSES.things), start=1)
    )
)


@dataclass(frozen=True)
class _Shape:
    """A shape with its path; lengths as shares of the side, times as shares of the video.

    Attributes:
        kind: index in ``THINGS``.
        place, speed: (x, y) at the start, and the way of the whole video.
        angle, turn: at the start, and of the whole video, radians.
        gone: from when to when it is out of sight; (1, 1) never.
    """

    kind: int
    place: np.ndarray
    speed: np.ndarray
    radius: float
    angle: float
    turn: float
    colour: np.ndarray
    gone: tuple[float, float]

    def centre(self, time: float) -> np.ndarray:
        """(x, y) at a time in [0, 1]; edges reflect."""
        way = (self.place + time * self.speed) % 2.0
        return np.where(way > 1.0, 2.0 - way, way)


class GeneratedVideos(VideoSource):
    """The generated videos.

    Args:
        split: ``train``, ``val`` or ``test``: other videos of the same classes.
        size: side of the square frames in pixels, 32 to 512.
        videos: number of videos.
        frames: of each video, 1 to 1000.
        seed: another seed gives other videos.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self, split: str = "train", *, size: int = 64, videos: int = 200, frames: int = 8, seed: int = 0
    ) -> None:
        check_options(
            "GeneratedVideos",
            split,
            size=(size, 32, 512),
            videos=(videos, 1, 10**6),
            frames=(frames, 1, 1000),
            seed=(seed, 0, 2**31),
        )
        self._side, self._frames, self.seed = size, frames, seed
        super().__init__(split, CLASSES, [f"{split}-{number:05d}" for number in range(videos)])

    def frames(self, name: str) -> int:
        self._number(name)
        return self._frames

    def size(self, name: str) -> tuple[int, int]:
        self._number(name)
        return self._side, self._side

    def video_id(self, name: str) -> int | str:
        return self._number(name) + 1

    def frame(self, name: str, index: int) -> Image.Image:
        number = self._number(name)
        ground, shapes = _scene(self.seed, SPLITS[self.split], number, self._side)
        canvas = ground.copy()
        y, x = np.mgrid[0 : self._side, 0 : self._side] / self._side
        time = self._time(index)
        for shape, inside in zip(shapes, self._inside(shapes, time), strict=True):
            if inside.any():
                u, v = _turned(shape, x, y, time)
                texture = TEXTURES[THING_TEXTURES[shape.kind]](u * 14 * shape.radius, v * 14 * shape.radius)
                canvas[inside] = shape.colour * (0.55 + 0.45 * texture[inside][:, None])
        rng = np.random.default_rng([self.seed, SPLITS[self.split], number, index])
        canvas += rng.uniform(-0.03, 0.03, canvas.shape)
        return Image.fromarray((canvas.clip(0, 1) * 255).astype(np.uint8))

    def tracks(self, name: str) -> list[TrackTruth]:
        number = self._number(name)
        _, shapes = _scene(self.seed, SPLITS[self.split], number, self._side)
        frames = [self._visible(shapes, self._time(index)) for index in range(self._frames)]
        tracks = []
        for place, shape in enumerate(shapes):
            masks = [masks_of_frame[place] for masks_of_frame in frames]
            if any(mask.any() for mask in masks):
                seen = [mask if mask.any() else None for mask in masks]
                tracks.append(TrackTruth(100 * number + place + 1, shape.kind, seen))
        return tracks

    def _time(self, index: int) -> float:
        if not 0 <= index < self._frames:
            raise ValueError(f"{self.label}: frame must be in 0..{self._frames - 1}, got {index}")
        return index / max(self._frames - 1, 1)

    def _inside(self, shapes: tuple[_Shape, ...], time: float) -> list[np.ndarray]:
        """Bool [H, W] of every shape, whatever lies on it."""
        y, x = np.mgrid[0 : self._side, 0 : self._side] / self._side
        masks = []
        for shape in shapes:
            if shape.gone[0] <= time < shape.gone[1]:
                masks.append(np.zeros(x.shape, dtype=bool))
                continue
            u, v = _turned(shape, x, y, time)
            masks.append((abs(u) < 1.5) & (abs(v) < 1.5) & OUTLINES[THINGS[shape.kind]](u, v))
        return masks

    def _visible(self, shapes: tuple[_Shape, ...], time: float) -> list[np.ndarray]:
        """Bool [H, W] of what is seen of every shape: later shapes lie on earlier ones."""
        covered = np.zeros((self._side, self._side), dtype=bool)
        masks = []
        for inside in self._inside(shapes, time)[::-1]:
            masks.append(inside & ~covered)
            covered |= inside
        return masks[::-1]

    def _number(self, name: str) -> int:
        self.check_name(name)
        return int(name.rpartition("-")[2])


def _turned(shape: _Shape, x: np.ndarray, y: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (u, v) of pixels (x, y) in a shape's own frame, in radii."""
    centre, angle = shape.centre(time), shape.angle + time * shape.turn
    cos, sin = np.cos(angle) / shape.radius, np.sin(angle) / shape.radius
    dx, dy = x - centre[0], y - centre[1]
    return dx * cos + dy * sin, dy * cos - dx * sin


@lru_cache(maxsize=64)
def _scene(seed: int, split: int, number: int, side: int) -> tuple[np.ndarray, tuple[_Shape, ...]]:
    """The ground [side, side, 3] in 0..1, and the shapes of a video."""
    rng = np.random.default_rng([seed, split, number])
    cells = rng.uniform(0.25, 0.75, 3) + 0.25 * (rng.random((4, 4, 3)) - 0.5)
    small = Image.fromarray((cells.clip(0, 1) * 255).astype(np.uint8))
    ground = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    shapes = []
    for order in range(1 + int(3 * rng.random())):
        kind, radius = int(rng.integers(len(THINGS))), float(rng.uniform(0.13, 0.24))
        heading, way = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.8)
        colour = np.array(CLASSES.categories[kind].colour) / 255 + rng.uniform(-0.1, 0.1, 3)
        start = float(rng.uniform(0.25, 0.5))
        gone = (start, start + float(rng.uniform(0.2, 0.4)))
        hides = (number + order) % 3 == 0
        shapes.append(
            _Shape(
                kind,
                rng.uniform(radius, 1 - radius, 2),
                way * np.array([np.cos(heading), np.sin(heading)]),
                radius,
                float(rng.uniform(-0.4, 0.4)),
                float(rng.uniform(-0.8, 0.8)),
                colour.clip(0, 1),
                gone if hides else (1.0, 1.0),
            )
        )
    return ground, tuple(shapes)
