"""An image with all that is said of its pixels, and the movements that keep both together.

Each movement exists once and moves everything that a scene holds: image, maps, and outlines of objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image

from fssops.labels import IGNORE
from fssops.normalisation import MEAN
from fssops.truth import Polygons, Segment

Size = tuple[int, int]
"""Height and width in pixels."""


def checked_size(where: str, size: Sequence[int]) -> Size:
    """Check a (height, width) and return it as a tuple.

    Args:
        where: what errors call the place.
        size: as a user gives it.

    Raises:
        ValueError: not two positive integers.
    """
    values = tuple(size) if isinstance(size, Sequence) else ()
    if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
        raise ValueError(f"{where}: size must be two positive integers (height, width), got {size!r}")
    return values[0], values[1]


Outline = Polygons | np.ndarray
"""An object: polygons [n, 2] of (x, y) in pixels, or a bool mask [H, W]."""

FILL = {
    **dict.fromkeys(("label", "base", "everything", "scribble"), IGNORE),
    **dict.fromkeys(("instance", "objects", "segments", "mask"), 0),
}
"""The maps that a scene may hold, and what each has where it says nothing: outside the picture it was made of."""

GREY = np.full(3, 128, dtype=np.uint8)
BLACK = np.zeros(3, dtype=np.uint8)
MEAN_COLOUR = 255.0 * np.array(MEAN, dtype=np.float32)
"""Colours of padding: detectron2's, MSANet's in evaluation, and BAM's and MSANet's in training."""


@dataclass
class Scene:
    """An image and what is in it, all of one size.

    Attributes:
        image: [H, W, 3] RGB in 0..255, uint8, or float32 after a step that keeps fractions.
        maps: name -> integers [H, W]; names are those of :data:`FILL`. 255 is where nothing is known in ``label``
            (class ids, or class indices), ``base`` (places among the base classes), ``everything`` (ids of all
            classes) and ``scribble`` (numbers of strokes); 0 is none in ``instance`` (numbers of one class's objects),
            ``objects`` (of all objects) and ``segments`` (int32 ids of ``segments``).
        segments: what the ids in the map ``segments`` stand for.
        outlines: objects, which may overlap.
        labels: class index of each outline.

    Raises:
        ValueError: a map of another name.
    """

    image: np.ndarray
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    outlines: list[Outline] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse maps whose fill value nothing says."""
        for name in self.maps.keys() - FILL.keys():
            raise ValueError(f"Scene: maps must be among {', '.join(FILL)}, got {name!r}")

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.image.shape[0], self.image.shape[1]


Transform = Callable[[Scene, np.random.Generator], Scene]
"""Draws what it needs from the generator and returns another scene; global random state is never touched."""


def _moved(
    scene: Scene,
    image: np.ndarray,
    move_map: Callable[[str, np.ndarray], np.ndarray],
    move_points: Callable[[np.ndarray], np.ndarray],
) -> Scene:
    """A scene with another image, whose maps and masks went through one function, and polygons through another."""

    def move_outline(outline: Outline) -> Outline:
        if isinstance(outline, np.ndarray):
            return move_map("mask", outline)
        return [move_points(polygon) for polygon in outline]

    maps = {name: move_map(name, values) for name, values in scene.maps.items()}
    return replace(scene, image=image, maps=maps, outlines=[move_outline(outline) for outline in scene.outlines])


# Resizing.

NearestRule = Literal["centres", "corners", "exact_corners"]
"""Which pixel is nearest to pixel i of a resized side: ``centres`` floor((i + 0.5) * ratio), Pillow's rule; ``corners``
floor(i * ratio), OpenCV's and torch's, with the ratio old / new rounded to a double; ``exact_corners`` the same without
that rounding, in integers."""


@dataclass(frozen=True)
class Resampling:
    """How a published system resizes.

    Attributes:
        antialias: images by Pillow's bilinear filter, which widens when it shrinks and keeps 8 bits; else bilinear by
            pixel centres without that, in float32 (OpenCV's ``INTER_LINEAR``).
        nearest: rule of maps and masks. Polygons keep their fractions.
        nearest_label: rule of the map ``label``; None: the same.
    """

    antialias: bool
    nearest: NearestRule
    nearest_label: NearestRule | None = None


PANET = Resampling(antialias=True, nearest="centres")
MSANET = Resampling(antialias=False, nearest="corners")
MM_FORMER = Resampling(antialias=True, nearest="corners")
DETECTRON2 = Resampling(antialias=True, nearest="centres", nearest_label="exact_corners")


def nearest_pixels(old: int, new: int, rule: NearestRule) -> np.ndarray:
    """Index, in a side of ``old`` pixels, of the pixel that each of ``new`` takes: int [new]."""
    steps = np.arange(new)
    if rule == "exact_corners":
        return np.asarray(steps * old // new)
    places = (steps + 0.5 if rule == "centres" else steps) * (old / new)
    return np.minimum(places.astype(np.intp), old - 1)


def resized_map(values: np.ndarray, size: Size, rule: NearestRule) -> np.ndarray:
    """Resize a map [H, W] of any type to (height, width), each pixel taking the nearest one's value."""
    rows, columns = (nearest_pixels(old, new, rule) for old, new in zip(values.shape, size, strict=True))
    return np.asarray(values[rows[:, None], columns[None, :]])


def resized_image(image: np.ndarray, size: Size, *, antialias: bool = True) -> np.ndarray:
    """Resize an image [H, W, 3] to (height, width); see :class:`Resampling`."""
    if image.shape[:2] == size:
        return image
    if not antialias:
        planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))[None]
        planes = torch.nn.functional.interpolate(planes, size=size, mode="bilinear", align_corners=False)
        return planes[0].permute(1, 2, 0).contiguous().numpy()

    def filtered(part: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(part).resize((size[1], size[0]), Image.Resampling.BILINEAR))

    if image.dtype == np.uint8:
        return filtered(image)
    return np.stack([filtered(image[..., channel]) for channel in range(3)], axis=-1)


def resized(scene: Scene, size: Size, rules: Resampling) -> Scene:
    """Resize to (height, width), whatever the aspect."""
    if size == scene.size:
        return scene

    def move_map(name: str, values: np.ndarray) -> np.ndarray:
        rule = rules.nearest_label if name == "label" and rules.nearest_label else rules.nearest
        return resized_map(values, size, rule)

    scale = np.array([size[1] / scene.size[1], size[0] / scene.size[0]])
    image = resized_image(scene.image, size, antialias=rules.antialias)
    return _moved(scene, image, move_map, lambda points: points * scale)


# Other movements.


def cropped(scene: Scene, top: int, left: int, height: int, width: int) -> Scene:
    """Cut a window; what lies outside the image is left away."""
    window = (slice(top, top + height), slice(left, left + width))
    offset = np.array([left, top], dtype=np.float64)
    return _moved(scene, scene.image[window], lambda _, values: values[window], lambda points: points - offset)


def padded(scene: Scene, size: Size, *, top: int = 0, left: int = 0, colour: np.ndarray = GREY) -> Scene:
    """Put a scene on a canvas of at least ``size``; what is added holds ``colour`` and :data:`FILL`.

    Args:
        scene: stays as it is where it has that size.
        size: (height, width); a side that is longer already stays.
        top: rows added above; the rest goes below.
        left: columns added to the left; the rest goes to the right.
        colour: of what is added, [3]; a float colour makes the image one of floats.
    """
    height, width = max(size[0], scene.size[0]), max(size[1], scene.size[1])
    if (height, width) == scene.size:
        return scene
    window = (slice(top, top + scene.size[0]), slice(left, left + scene.size[1]))
    image = np.empty((height, width, 3), dtype=np.result_type(scene.image, colour))
    image[:] = colour
    image[window] = scene.image

    def move_map(name: str, values: np.ndarray) -> np.ndarray:
        canvas = np.full((height, width), FILL[name], dtype=values.dtype)
        canvas[window] = values
        return canvas

    return _moved(scene, image, move_map, lambda points: points + np.array([left, top], dtype=np.float64))


def flipped(scene: Scene) -> Scene:
    """Mirror left and right."""
    width = scene.size[1]

    def move_points(points: np.ndarray) -> np.ndarray:
        return np.stack([width - points[:, 0], points[:, 1]], axis=1)

    return _moved(scene, scene.image[:, ::-1], lambda _, values: values[:, ::-1], move_points)


def rotated(scene: Scene, degrees: float, colour: np.ndarray = MEAN_COLOUR) -> Scene:
    """Turn about the centre, counterclockwise, size kept: the image bilinear in float32, maps to the nearest pixel.

    What comes from outside the picture holds ``colour``, [3], and :data:`FILL`.
    """

    def turned(values: np.ndarray, fill: float, filter: Image.Resampling) -> np.ndarray:
        return np.asarray(Image.fromarray(values).rotate(degrees, filter, fillcolor=fill))

    def move_map(name: str, values: np.ndarray) -> np.ndarray:
        return turned(values.astype(np.int32), FILL[name], Image.Resampling.NEAREST).astype(values.dtype)

    planes = np.moveaxis(scene.image.astype(np.float32), -1, 0)
    parts = [turned(p, float(v), Image.Resampling.BILINEAR) for p, v in zip(planes, colour, strict=True)]
    centre = np.array([scene.size[1] / 2.0, scene.size[0] / 2.0])
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    turn = np.array([[cosine, -sine], [sine, cosine]])  # of rows (x, y), y downwards
    return _moved(scene, np.stack(parts, axis=-1), move_map, lambda points: (points - centre) @ turn + centre)
