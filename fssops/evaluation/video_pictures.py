"""Frames with the objects on them, each in a colour of its own that stays through the video."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fssops.evaluation.universal_pictures import Colour, Region, overlay_regions

SHOWN_SCORE = 0.3
"""Objects below this score are left out of pictures."""


@dataclass(frozen=True)
class DrawnObject:
    """An object to draw.

    Attributes:
        colour: of its mask in every frame.
        caption: what stands on it.
    """

    colour: Colour
    caption: str


def object_colour(number: int) -> Colour:
    """Colour of the ``number``-th object: hues by the golden ratio, so neighbours differ."""
    red, green, blue = colorsys.hsv_to_rgb(
        (0.61803398875 * number + 0.01) % 1.0, (0.85, 0.65)[number // 8 % 2], (0.95, 0.75)[number // 16 % 2]
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def drawn_objects(
    labels: Sequence[int], scores: Sequence[float], names: Sequence[str], least_score: float = SHOWN_SCORE
) -> dict[int, DrawnObject]:
    """Which of the objects, best first, are drawn, and how: position -> colour and caption.

    Args:
        labels: class indices.
        scores: in [0, 1].
        names: class names.
        least_score: objects below it are left out.
    """
    return {
        number: DrawnObject(object_colour(number), f"{names[label]} {100 * score:.0f}")
        for number, (label, score) in enumerate(zip(labels, scores, strict=True))
        if score >= least_score
    }


def draw_frame(image: np.ndarray, objects: dict[int, DrawnObject], masks: dict[int, np.ndarray]) -> np.ndarray:
    """Draw objects onto a frame, the best on top.

    Args:
        image: [H, W, 3] uint8.
        objects: of :func:`drawn_objects`.
        masks: position -> bool [H, W]; objects without one are not in this frame.

    Returns:
        [H, W, 3] uint8.
    """
    shown = [number for number in sorted(objects, reverse=True) if number in masks and masks[number].any()]
    return overlay_regions(image, [Region(masks[n], objects[n].colour, objects[n].caption) for n in shown])
