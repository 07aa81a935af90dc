"""Pictures of fixed-class results: overlays with class names, palette label maps, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fssops.evaluation.pictures import outline
from fssops.structures import IGNORE

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Region:
    """One region to draw: bool mask [H, W], colour, and what stands on it ("" for nothing)."""

    mask: np.ndarray
    colour: Colour
    caption: str = ""


def palette_image(labels: np.ndarray, colours: Sequence[Colour]) -> Image.Image:
    """A palette picture whose values are the class indices [H, W] themselves; 255 (no class) is light grey."""
    plain = np.ascontiguousarray(labels, dtype=np.uint8)
    picture = Image.frombytes("P", (plain.shape[1], plain.shape[0]), plain.tobytes())
    table = [(0, 0, 0)] * 256
    table[: len(colours)] = colours
    table[IGNORE] = (224, 224, 224)
    picture.putpalette([value for colour in table for value in colour])
    return picture


def semantic_regions(labels: np.ndarray, names: Sequence[str], colours: Sequence[Colour]) -> list[Region]:
    """One region a class of a label map [H, W]; 255 and values beyond the classes are left out."""
    present = [label for label in np.unique(labels).tolist() if 0 <= label < len(names)]
    return [Region(labels == label, colours[label], names[label]) for label in present]


def shade(colour: Colour, number: int) -> Colour:
    """The colour of the ``number``-th object of a class: its class's, lighter or darker in turns."""
    factor = (1.0, 0.72, 1.28, 0.86, 1.14)[number % 5]
    red, green, blue = (min(255, round(factor * value)) for value in colour)
    return red, green, blue


def overlay_regions(image: np.ndarray, regions: Sequence[Region], opacity: float = 0.5) -> np.ndarray:
    """Tint regions, outline them and write their captions; what no region covers stays as it is.

    Args:
        image: [H, W, 3] uint8.
        regions: drawn in this order.
        opacity: of the tint, in [0, 1].

    Returns:
        [H, W, 3] uint8.
    """
    canvas = image.astype(np.float32)
    for region in regions:
        colour = np.array(region.colour, dtype=np.float32)
        canvas[region.mask] = (1 - opacity) * canvas[region.mask] + opacity * colour
    for region in regions:
        canvas[outline(region.mask.astype(np.uint8)) & region.mask] = region.colour
    picture = Image.fromarray(canvas.clip(0, 255).round().astype(np.uint8))
    _write_captions(picture, regions)
    return np.asarray(picture)


def _write_captions(picture: Image.Image, regions: Sequence[Region]) -> None:
    draw = ImageDraw.Draw(picture)
    size = int(np.clip(min(picture.size) / 28, 9, 22))
    font = ImageFont.load_default(size)
    for region in regions:
        # Small regions would hide under their own names.
        if not region.caption or region.mask.sum() < 12 * size * size:
            continue
        x, y = _inside_point(region.mask)
        box = draw.textbbox((x, y), region.caption, font=font, anchor="mm")
        draw.rectangle((box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1), fill=(255, 255, 255))
        draw.text((x, y), region.caption, fill=(20, 20, 20), font=font, anchor="mm")


def _inside_point(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of a pixel well inside a mask: the farthest from its outside."""
    from scipy import ndimage

    step = max(1, max(mask.shape) // 160)
    # A coarse copy is enough to place a word, unless the region is too thin to show in it.
    if not mask[::step, ::step].any():
        step = 1
    coarse = np.pad(mask[::step, ::step], 1)
    distance = ndimage.distance_transform_cdt(coarse)[1:-1, 1:-1]
    row, column = divmod(int(distance.argmax()), distance.shape[1])
    return column * step, row * step


def confusion_picture(confusion: np.ndarray, names: Sequence[str], target: Path, title: str, most: int = 40) -> None:
    """Draw a confusion matrix as shares of the true class.

    Args:
        confusion: [C, C + 1] pixels, rows truth; the last column: no class.
        names: of the classes.
        target: PNG to write.
        title: above the picture.
        most: of more classes, those with the most pixels are drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    totals = confusion.sum(1)
    shown = [index for index in np.argsort(-totals, kind="stable").tolist() if totals[index] > 0][:most]
    shown.sort()
    share = confusion[shown][:, shown].astype(np.float64) / np.maximum(totals[shown], 1)[:, None]
    side = 2.2 + 0.32 * max(len(shown), 6)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    labels = [names[index] if len(names[index]) <= 22 else f"{names[index][:20]}.." for index in shown]
    axis.set_xticks(range(len(shown)), labels, rotation=90, fontsize=8)
    axis.set_yticks(range(len(shown)), labels, fontsize=8)
    axis.set_xlabel("predicted", fontsize=9)
    axis.set_ylabel("truth", fontsize=9)
    axis.set_title(title, fontsize=9, wrap=True)
    if len(shown) <= 20:
        for row in range(len(shown)):
            for column in range(len(shown)):
                if share[row, column] >= 0.005:
                    colour = "white" if share[row, column] > 0.5 else "black"
                    text = f"{100 * share[row, column]:.0f}"
                    axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    bar = figure.colorbar(image, ax=axis, shrink=0.8)
    bar.set_label("share of the true class's pixels", fontsize=8)
    figure.savefig(target, dpi=110)
