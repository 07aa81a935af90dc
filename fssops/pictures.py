"""Drawing that every picture shares: one palette, one overlay of regions with outlines and captions, grids of tiles."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fssops.labels import IGNORE

Colour = tuple[int, int, int]

PALETTE: tuple[Colour, ...] = (
    (230, 57, 70),
    (29, 120, 216),
    (244, 162, 28),
    (42, 157, 93),
    (155, 81, 224),
    (0, 175, 200),
    (236, 100, 170),
    (140, 110, 60),
)
"""Colours of ways 1, 2, .., which repeat beyond, and of the first objects."""

UNKNOWN: Colour = (224, 224, 224)
"""Pixels of no class."""

CROWD: Colour = (150, 150, 150)

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Box = tuple[int, int, int, int]


def way_colour(way: int) -> Colour:
    """Colour of a way, from 0."""
    return PALETTE[way % len(PALETTE)]


def object_colour(number: int) -> Colour:
    """Colour of the ``number``-th object of a picture or a video, from 0; no two objects share one."""
    if number < len(PALETTE):
        return PALETTE[number]
    # Hues by the golden ratio, so that neighbours differ, in four shades.
    saturation, value = ((0.75, 0.95), (0.5, 0.8), (0.9, 0.7), (0.4, 0.98))[number // 8 % 4]
    red, green, blue = colorsys.hsv_to_rgb((0.61803398875 * number + 0.01) % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


@dataclass(frozen=True)
class Region:
    """One region to draw.

    Attributes:
        mask: bool [H, W].
        colour: of its tint and its outline.
        caption: what stands on it; "" for nothing.
        outlined: whether it has an outline.
    """

    mask: np.ndarray
    colour: Colour
    caption: str = ""
    outlined: bool = True


def way_regions(labels: np.ndarray) -> list[Region]:
    """One region a way of a label map [H, W] of 0, n = way n and ``IGNORE``, which is light grey."""
    ways = [int(way) for way in np.unique(labels) if way not in (0, IGNORE)]
    return [
        *(Region(labels == way, way_colour(way - 1)) for way in ways),
        Region(labels == IGNORE, UNKNOWN, outlined=False),
    ]


def overlay(image: np.ndarray, regions: Sequence[Region], *, opacity: float = 0.5, pale: bool = False) -> np.ndarray:
    """Tint regions, outline them and write their captions.

    Captions keep within the picture and off each other: one for which its region has no room left is not written.

    Args:
        image: [H, W, 3] uint8.
        regions: drawn in this order, the last on top.
        opacity: of the tint, in [0, 1]. Outlines are opaque.
        pale: pale what no region covers, so that they stand out; otherwise it stays as it is.

    Returns:
        [H, W, 3] uint8.
    """
    canvas = image.astype(np.float32)
    if pale:
        grey = canvas @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        covered = np.zeros(image.shape[:2], dtype=bool)
        for region in regions:
            covered |= region.mask
        canvas = np.where(covered[..., None], canvas, 0.25 * canvas + 0.45 * grey[..., None] + 0.3 * 255.0)
    for region in regions:
        canvas[region.mask] = (1 - opacity) * canvas[region.mask] + opacity * np.array(region.colour, dtype=np.float32)
    for region in regions:
        if region.outlined:
            canvas[outline(region.mask) & region.mask] = region.colour
    picture = Image.fromarray(canvas.clip(0, 255).round().astype(np.uint8))
    _write_captions(picture, regions)
    return np.asarray(picture)


def overlay_ways(image: np.ndarray, labels: np.ndarray, opacity: float = 0.45) -> np.ndarray:
    """The ways of a label map on a picture that is paled elsewhere; see :func:`way_regions` and :func:`overlay`."""
    return overlay(image, way_regions(labels), opacity=opacity, pale=True)


def enlarged_overlay(image: np.ndarray, regions: Sequence[Region], side: int) -> np.ndarray:
    """An :func:`overlay`; pictures smaller than ``side`` are enlarged first, so that names on them can be read."""
    times = -(-side // max(image.shape[:2]))
    if times > 1:
        image = image.repeat(times, 0).repeat(times, 1)
        regions = [replace(region, mask=region.mask.repeat(times, 0).repeat(times, 1)) for region in regions]
    return overlay(image, regions)


def outline(labels: np.ndarray) -> np.ndarray:
    """Return True on pixels with a right, left, upper or lower neighbour of another label: bool [H, W]."""
    edge = np.zeros(labels.shape, dtype=bool)
    vertical, horizontal = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= vertical
    edge[:-1] |= vertical
    edge[:, 1:] |= horizontal
    edge[:, :-1] |= horizontal
    return edge


def tinted(image: np.ndarray, values: np.ndarray, colour: Colour) -> np.ndarray:
    """An image [H, W, 3] paled, and coloured by values [H, W]; values beyond 0 and 1 count as these."""
    share = 0.8 * values.clip(0.0, 1.0)[..., None]
    pale = 0.45 * image.astype(np.float32) + 0.55 * 255.0
    mixed: np.ndarray = ((1 - share) * pale + share * np.array(colour, dtype=np.float32)).round().astype(np.uint8)
    return mixed


def label_image(labels: np.ndarray, colours: Sequence[Colour] | None = None) -> Image.Image:
    """Return a palette image whose pixel values are the labels [H, W] themselves.

    Args:
        labels: integers 0..255; ``IGNORE`` is light grey.
        colours: of the labels 0, 1, ..; None: 0 black, then ways.
    """
    table = [(0, 0, 0), *map(way_colour, range(255))] if colours is None else [*colours, *[(0, 0, 0)] * 256][:256]
    table[IGNORE] = UNKNOWN
    plain = np.ascontiguousarray(labels, dtype=np.uint8)
    image = Image.frombytes("P", (plain.shape[1], plain.shape[0]), plain.tobytes())
    image.putpalette([value for colour in table for value in colour])
    return image


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


def _wrapped(text: str, font: _Font, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _shortened(text: str, font: _Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _write_captions(picture: Image.Image, regions: Sequence[Region]) -> None:
    draw = ImageDraw.Draw(picture)
    size = int(np.clip(min(picture.size) / 28, 9, 22))
    font = ImageFont.load_default(size)
    written: list[_Box] = []
    for region in reversed(regions):  # those on top choose first
        # Small regions would hide under their own names.
        if not region.caption or region.mask.sum() < 12 * size * size:
            continue
        caption = _shortened(region.caption, font, picture.width - 5)
        left, top, right, bottom = draw.textbbox((0, 0), caption, font=font, anchor="mm")
        frame = (math.floor(left) - 2, math.floor(top) - 1, math.ceil(right) + 2, math.ceil(bottom) + 1)
        for x, y in _inside_points(region.mask, frame):
            x = max(-frame[0], min(x, picture.width - 1 - frame[2]))
            y = max(-frame[1], min(y, picture.height - 1 - frame[3]))
            box = (x + frame[0], y + frame[1], x + frame[2], y + frame[3])
            if box[0] >= 0 and box[1] >= 0 and not any(_overlap(box, other) for other in written):
                draw.rectangle(box, fill=(255, 255, 255))
                draw.text((x, y), caption, fill=(20, 20, 20), font=font, anchor="mm")
                written.append(box)
                break


def _overlap(first: _Box, second: _Box) -> bool:
    apart = first[2] < second[0] or second[2] < first[0] or first[3] < second[1] or second[3] < first[1]
    return not apart


def _inside_points(mask: np.ndarray, frame: _Box) -> Iterator[tuple[int, int]]:
    """(x, y) of pixels inside a mask, those farthest from its outside first, no two within ``frame`` of each other."""
    from scipy import ndimage

    step = max(1, max(mask.shape) // 160)
    # A coarse copy is enough to place a word, unless the region is too thin to show in it.
    if not mask[::step, ::step].any():
        step = 1
    distance = ndimage.distance_transform_cdt(np.pad(mask[::step, ::step], 1))[1:-1, 1:-1]
    while distance.any():
        row, column = divmod(int(distance.argmax()), distance.shape[1])
        yield column * step, row * step
        rows, columns = (frame[3] - frame[1]) // step, (frame[2] - frame[0]) // (2 * step)
        distance[max(0, row - rows) : row + rows + 1, max(0, column - columns) : column + columns + 1] = 0
