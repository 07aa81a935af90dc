"""Pictures of label maps: palette PNGs, overlays, and grids of episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fssops.structures import IGNORE

WAY_COLOURS = (
    (230, 57, 70),
    (29, 120, 216),
    (244, 162, 28),
    (42, 157, 93),
    (155, 81, 224),
    (0, 175, 200),
    (236, 100, 170),
    (140, 110, 60),
)
"""Colours of ways 1, 2, ..; they repeat beyond."""

_UNKNOWN = (224, 224, 224)


def palette() -> list[int]:
    """Return 768 numbers for a palette PNG: 0 black, ways coloured, ``IGNORE`` light grey."""
    colours = [(0, 0, 0)] + [WAY_COLOURS[index % len(WAY_COLOURS)] for index in range(255)]
    colours[IGNORE] = _UNKNOWN
    return [value for colour in colours for value in colour]


def label_image(labels: np.ndarray) -> Image.Image:
    """Return a palette image whose pixel values are the labels [H, W] themselves."""
    plain = np.ascontiguousarray(labels, dtype=np.uint8)
    image = Image.frombytes("P", (plain.shape[1], plain.shape[0]), plain.tobytes())
    image.putpalette(palette())
    return image


def overlay(image: np.ndarray, labels: np.ndarray, opacity: float = 0.45) -> np.ndarray:
    """Tint the ways of a label map, draw their outlines, and pale everything else so that they stand out.

    Args:
        image: [H, W, 3] uint8.
        labels: [H, W]; ``IGNORE`` is light grey.
        opacity: of the tint, in [0, 1]. Outlines are opaque.

    Returns:
        [H, W, 3] uint8.
    """
    colours = np.array(palette(), dtype=np.float32).reshape(256, 3)
    tint = colours[labels.astype(np.uint8)]
    covered = (labels > 0)[..., None]
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    pale = 0.25 * image + 0.45 * grey[..., None] + 0.3 * 255.0
    mixed = np.where(covered, (1.0 - opacity) * image + opacity * tint, pale)
    edge = outline(labels)[..., None] & covered & (labels != IGNORE)[..., None]
    shown: np.ndarray = np.where(edge, tint, mixed).clip(0, 255).round().astype(np.uint8)
    return shown


def outline(labels: np.ndarray) -> np.ndarray:
    """Return True on pixels with a right, left, upper or lower neighbour of another label: bool [H, W]."""
    edge = np.zeros(labels.shape, dtype=bool)
    vertical, horizontal = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= vertical
    edge[:-1] |= vertical
    edge[:, 1:] |= horizontal
    edge[:, :-1] |= horizontal
    return edge


@dataclass(frozen=True)
class Tile:
    """One picture of a grid: [H, W, 3] uint8 and a caption."""

    image: np.ndarray
    caption: str = ""


def grid(rows: Sequence[Sequence[Tile]], headings: Sequence[str], title: str = "", side: int = 176) -> Image.Image:
    """Lay tiles out in rows under column headings.

    Args:
        rows: tiles of equal number a row; each is scaled into ``side`` x ``side`` pixels, aspect kept.
        headings: one a column.
        title: a line above everything; wrapped when too long.
        side: of a tile, pixels.
    """
    gap, margin, caption_height = 10, 18, 20
    title_font, heading_font, caption_font = (ImageFont.load_default(size) for size in (15, 14, 12))
    columns = len(headings)
    width = 2 * margin + columns * side + (columns - 1) * gap
    title_lines = _wrapped(title, title_font, width - 2 * margin)
    top = margin + 21 * len(title_lines) + (6 if title_lines else 0)
    row_height = side + caption_height + gap
    canvas = Image.new("RGB", (width, top + 22 + len(rows) * row_height + margin - gap), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(title_lines):
        draw.text((margin, margin + 21 * number), line, fill=(25, 25, 25), font=title_font)
    for column, heading in enumerate(headings):
        left = margin + column * (side + gap)
        draw.text((left + side / 2, top + 8), heading, fill=(25, 25, 25), font=heading_font, anchor="mm")
    for number, row in enumerate(rows):
        upper = top + 22 + number * row_height
        for column, tile in enumerate(row):
            left = margin + column * (side + gap)
            picture = _fitted(tile.image, side)
            offset = (left + (side - picture.width) // 2, upper + (side - picture.height) // 2)
            canvas.paste(picture, offset)
            caption = _shortened(tile.caption, caption_font, side)
            draw.text((left + side / 2, upper + side + 10), caption, fill=(90, 90, 90), font=caption_font, anchor="mm")
    return canvas


def _fitted(image: np.ndarray, side: int) -> Image.Image:
    picture = Image.fromarray(image)
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Small pictures are enlarged with visible pixels kept soft; large ones are reduced with antialiasing.
    return picture.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
