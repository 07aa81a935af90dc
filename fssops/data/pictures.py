"""Pictures of what a network is given: supports with their annotation, queries with their truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from fssops.normalisation import denormalise
from fssops.structures import IGNORE, Episode

WAY_COLOURS = (
    (230, 57, 70),
    (42, 157, 244),
    (255, 190, 11),
    (58, 190, 100),
    (170, 90, 230),
    (255, 127, 60),
    (0, 200, 200),
    (240, 100, 180),
)
"""Colour of way 1, 2, ..., repeated where there are more."""

_CAPTION = 14
_GAP = 4


def overlay(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], strength: float = 0.45) -> np.ndarray:
    """Tint the pixels of a mask and draw its outline: uint8 [H, W, 3], bool [H, W] -> uint8 [H, W, 3]."""
    result = image.astype(np.float32)
    result[mask] = (1 - strength) * result[mask] + strength * np.array(colour, dtype=np.float32)
    padded = np.pad(mask, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    result[mask & ~inside] = colour
    return result.astype(np.uint8)


def support_picture(
    image: np.ndarray, foreground: np.ndarray, background: np.ndarray, way: int, *, strokes: bool = False
) -> np.ndarray:
    """A support image: foreground in the way's colour, pixels that are neither darkened.

    Args:
        image: uint8 [H, W, 3].
        foreground: bool [H, W].
        background: bool [H, W].
        way: 0-based.
        strokes: the annotation is scribbles; their background is drawn as well, in white.
    """
    result: np.ndarray = image.copy()
    neither = ~(foreground | background)
    result[neither] = result[neither] // 3
    if strokes:
        result[background] = (255, 255, 255)
    return overlay(result, foreground, WAY_COLOURS[way % len(WAY_COLOURS)])


def query_picture(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """A query image with its truth: ways in their colours, ignored pixels grey.

    Args:
        image: uint8 [H, W, 3].
        label: [H, W] of 0, 1..N, 255.
    """
    result: np.ndarray = image.copy()
    result[label == IGNORE] = (result[label == IGNORE].astype(np.uint16) // 4 + 140).astype(np.uint8)
    for way in np.unique(label[(label != 0) & (label != IGNORE)]):
        result = overlay(result, label == way, WAY_COLOURS[(int(way) - 1) % len(WAY_COLOURS)])
    return result


def episode_row(episode: Episode, class_names: Mapping[int, str], *, strokes: bool = False) -> Image.Image:
    """One episode as a strip: supports of each way, then queries, with captions; ``strokes`` where scribbles mark."""
    tiles: list[tuple[np.ndarray, str]] = []
    ways, shots = episode.support_images.shape[:2]
    for way in range(ways):
        name = class_names.get(int(episode.classes[way]), "?")
        for shot in range(shots):
            picture = support_picture(
                denormalise(episode.support_images[way, shot]),
                episode.support_foreground[way, shot].numpy() > 0.5,
                episode.support_background[way, shot].numpy() > 0.5,
                way,
                strokes=strokes,
            )
            tiles.append((picture, f"support {name}"))
    for number in range(len(episode.query_images)):
        picture = query_picture(denormalise(episode.query_images[number]), episode.query_labels[number].numpy())
        tiles.append((picture, "query"))
    return strip(tiles)


def strip(tiles: list[tuple[np.ndarray, str]]) -> Image.Image:
    """Pictures side by side, each with a caption above that is cut to its width."""
    height = max(tile.shape[0] for tile, _ in tiles)
    width = sum(tile.shape[1] + _GAP for tile, _ in tiles) - _GAP
    canvas = Image.new("RGB", (width, height + _CAPTION), "white")
    drawing = ImageDraw.Draw(canvas)
    left = 0
    for tile, caption in tiles:
        while len(caption) > 1 and drawing.textlength(caption) > tile.shape[1]:
            caption = caption[:-1]
        drawing.text((left, 1), caption, fill="black")
        canvas.paste(Image.fromarray(tile), (left, _CAPTION))
        left += tile.shape[1] + _GAP
    return canvas


def stack(rows: list[Image.Image]) -> Image.Image:
    """Strips one below another, ragged ends white."""
    width, height = max(row.width for row in rows), sum(row.height + _GAP for row in rows)
    canvas = Image.new("RGB", (width, height), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height + _GAP
    return canvas
