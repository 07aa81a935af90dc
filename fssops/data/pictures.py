"""Pictures of data: images with their truth, and what a few-shot network is given, supports and queries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fssops.data.few_shot_source import FewShotSource
from fssops.data.source import ImageSource, VideoSource
from fssops.labels import IGNORE
from fssops.normalisation import denormalise
from fssops.pictures import CROWD, UNKNOWN, Colour, Region, Tile, grid, overlay, way_colour, way_regions
from fssops.structures import Episode
from fssops.truth import distinct_colours

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


def truth_sheet(source: FewShotSource | ImageSource | VideoSource, count: int = 12, side: int = 300) -> Image.Image:
    """Images of a data set with their truth drawn over them, evenly spread, and a legend of the classes on them.

    Args:
        source: one split; of videos the frame in the middle of those that say something is shown.
        count: how many at most.
        side: of an image, pixels.

    Raises:
        DataError, OSError: an image or its truth cannot be read.
    """
    chosen = np.unique(np.linspace(0, len(source.names) - 1, min(count, len(source.names))).round().astype(int))
    shown: dict[str, Colour] = {}
    tiles = []
    for name in (source.names[index] for index in chosen):
        picture, regions, caption = _item(source, name, shown)
        scale = side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        small = [
            replace(region, mask=np.asarray(Image.fromarray(region.mask).resize(size, Image.Resampling.NEAREST)))
            for region in regions
        ]
        tiles.append(Tile(overlay(np.asarray(picture.resize(size)), small, opacity=0.45), caption))
    columns = min(4, len(tiles))
    tiles += [Tile(np.full((1, 1, 3), 255, dtype=np.uint8))] * (-len(tiles) % columns)
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    title = f"{source.label}: {len(chosen)} of {len(source.names)} {source.items}"
    drawn = grid(rows, [""] * columns, title, side)
    return stack([drawn, legend(sorted(shown.items()), drawn.width)])


def _item(
    source: FewShotSource | ImageSource | VideoSource, name: str, shown: dict[str, Colour]
) -> tuple[Image.Image, list[Region], str]:
    """An image, the regions of its truth and its caption; adds to ``shown`` the classes that are on it."""
    if isinstance(source, VideoSource):
        tracks, frames = source.tracks(name) if source.has_truth else [], range(source.frames(name))
        telling = [index for index in frames if any(track.segmentations[index] for track in tracks)] or list(frames)
        index = telling[len(telling) // 2]
        masks = [(track.mask(index, *source.size(name)), track.label, track.crowd) for track in tracks]
        found = [(mask, label, crowd) for mask, label, crowd in masks if mask is not None]
        picture, caption = source.frame(name, index), f"{name}, frame {index}"
    elif isinstance(source, FewShotSource):
        labels = source.label_map(name)
        places = {number: place for place, number in enumerate(source.classes)}
        found = [(labels == number, places[number], False) for number in np.unique(labels).tolist() if number in places]
        found += [(labels == IGNORE, -1, False)] if (labels == IGNORE).any() else []
        picture, caption = source.image(name), name
    else:
        truth, caption = source.truth(name), name
        if truth.objects is not None:
            objects = [(entry.mask(truth.height, truth.width), entry.label, entry.crowd) for entry in truth.objects]
            found = sorted(objects, key=lambda entry: -int(entry[0].sum()))
        elif truth.segment_ids is not None:
            found = [(truth.segment_ids == entry.id, entry.label, entry.crowd) for entry in truth.segments]
        else:
            labels = truth.semantic()
            found = [(labels == label, label, False) for label in np.unique(labels).tolist() if label != IGNORE]
            found += [(labels == IGNORE, -1, False)] if (labels == IGNORE).any() else []
        found = [entry for entry in found if entry[1] != source.classes.background or entry[1] < 0]
        picture = source.image(name)
    if isinstance(source, FewShotSource):
        names = list(source.classes.values())
        colours = distinct_colours(len(names))
    else:
        names, colours = source.classes.names, source.classes.colours
    regions = []
    for mask, label, crowd in found:
        text, colour = ("ignored", UNKNOWN) if label < 0 else (names[label], colours[label])
        text, colour = (f"{text} (crowd)", CROWD) if crowd else (text, colour)
        shown[text] = colour
        regions.append(Region(mask, colour, "" if label < 0 else text, outlined=label >= 0))
    return picture, regions, caption


def legend(entries: Sequence[tuple[str, Colour]], width: int) -> Image.Image:
    """Names beside squares of their colours, in as many lines as they need; those that are too long are cut."""
    font, height, square, margin = ImageFont.load_default(13), 22, 14, 18
    lines: list[list[tuple[str, Colour]]] = [[]]
    used = margin
    for name, colour in entries:
        while font.getlength(name) > width - 3 * margin - square:
            name = name[:-2]
        taken = square + 6 + math.ceil(font.getlength(name)) + margin
        if used + taken > width and lines[-1]:
            lines, used = [*lines, []], margin
        lines[-1].append((name, colour))
        used += taken
    canvas = Image.new("RGB", (width, height * len(lines) + margin), "white")
    drawing = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        left, top = margin, row * height
        for name, colour in line:
            drawing.rectangle((left, top, left + square, top + square), fill=colour, outline=(60, 60, 60))
            drawing.text((left + square + 6, top + square / 2), name, fill=(25, 25, 25), font=font, anchor="lm")
            left += square + 6 + math.ceil(font.getlength(name)) + margin
    return canvas


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
