"""Pictures of what a network is given: supports with their annotation, queries with their truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from fssops.normalisation import denormalise
from fssops.pictures import Region, overlay, way_colour, way_regions
from fssops.structures import Episode

_CAPTION = 14
_GAP = 4


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
    return overlay(result, [Region(foreground, way_colour(way))], opacity=0.45)


def query_picture(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """A query image with its truth: ways in their colours, ignored pixels grey.

    Args:
        image: uint8 [H, W, 3].
        label: [H, W] of 0, 1..N, 255.
    """
    return overlay(image, way_regions(label), opacity=0.45)


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
