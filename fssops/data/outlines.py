"""Outlines as annotation files have them, polygons and run lengths: what of one can be drawn, and what is wrong.

Everything is looked at here before pycocotools sees it, which trusts what it is given: it may write out of bounds, and
takes memory by the length of an outline.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from fssops import run_lengths
from fssops.data.json_values import shown, whole_number

HIDDEN = ("zero area", "outside the image", "empty polygon list")
"""Reasons that say no more than that nothing of an outline is seen."""

MAX_LENGTH = 1 << 22
"""Pixels that an outline may be long; drawing one takes 100 bytes a pixel."""

_FARTHEST = 1e15
"""Coordinates beyond it are no places: lines between them cannot be cut exactly."""


def drawable(segmentation: Any, width: int, height: int) -> tuple[Any, list[str]]:
    """What of a segmentation can be drawn on an image of this size.

    Polygons are cut at the image's own width to its left and right and its own height above and below, which changes
    nothing inside. Parts that cover nothing of the image are left out without a word, since nothing is lost.

    Args:
        segmentation: any value.
        width: of the image.
        height: of the image.

    Returns:
        polygons as arrays x0, y0, x1, y1, .. in pixels (a quarter of the memory of lists), or run lengths with
        ``counts`` as a compressed string, or None where nothing can be drawn; and what is wrong: then the reason alone,
        else of each polygon that was left out or cut.
    """
    if isinstance(segmentation, dict):
        runs, reason = _runs(segmentation, width, height)
        return runs, [reason] if reason else []
    if segmentation is None:
        return None, ["no segmentation"]
    if not isinstance(segmentation, list):
        return None, [f"segmentation is neither polygons nor RLE but {type(segmentation).__name__}"]
    if not segmentation:
        return None, ["empty polygon list"]
    parts, hidden, faults = [], [], []
    for number, given in enumerate(segmentation):
        polygon, reason = _polygon(given, width, height)
        if polygon is not None:
            parts.append(polygon)
        if reason in HIDDEN:
            hidden.append(reason)
        elif reason:
            faults.append((number, reason, polygon))
    if not parts:
        return None, [faults[0][1] if faults else hidden[0]]
    return parts, [f"polygon {number} {'cut' if cut else 'left out'}: {reason}" for number, reason, cut in faults]


def _polygon(given: Any, width: int, height: int) -> tuple[array[float] | None, str]:
    """A polygon, or None; and what is wrong with it, or ""."""
    if not isinstance(given, list):
        return None, f"polygon is not a list but {type(given).__name__}"
    if not given:
        return None, "empty polygon"
    if len(given) % 2:
        return None, f"odd number of coordinates ({len(given)})"
    if len(given) < 6:
        return None, "fewer than 3 points"
    if not set(map(type, given)) <= {float, int}:
        return None, f"coordinates are not numbers, e.g. {shown(next(v for v in given if type(v) not in (float, int)))}"
    far = next((value for value in given if not -_FARTHEST <= value <= _FARTHEST), None)
    if far is not None:
        return None, f"coordinates are not finite, or beyond {_FARTHEST:g}: {shown(far)}"
    xs, ys = given[0::2], given[1::2]
    if max(xs) <= 0 or max(ys) <= 0 or min(xs) >= width or min(ys) >= height:
        return None, "outside the image"
    told = ""
    beyond = [value for value in (min(xs), max(xs)) if not -width <= value <= 2 * width]
    beyond += [value for value in (min(ys), max(ys)) if not -height <= value <= 2 * height]
    if beyond:
        told = f"coordinates must be within the image's own size around it, got {beyond[0]:g}"
        points = _cut(list(zip(xs, ys, strict=True)), width, height)
        xs, ys = [x for x, _ in points], [y for _, y in points]
        if not points:
            return None, "outside the image"
    # Shoelace formula around the first point, where the products stay small and exact.
    twice, length, px, py = 0.0, 0.0, xs[-1] - xs[0], ys[-1] - ys[0]
    for x, y in zip(xs, ys, strict=True):
        dx, dy = x - xs[0], y - ys[0]
        twice += px * dy - dx * py
        length += max(abs(dx - px), abs(dy - py))
        px, py = dx, dy
    if twice == 0 and _collinear(xs, ys):
        return None, "zero area"
    if length > MAX_LENGTH:
        return None, f"outline is longer than {MAX_LENGTH} pixels: {length:.0f}"
    return array("d", (v for point in zip(xs, ys, strict=True) for v in point) if beyond else given), told


def _cut(points: list[tuple[float, float]], width: int, height: int) -> list[tuple[float, float]]:
    """The part of a polygon from -width to 2 width and from -height to 2 height (Sutherland and Hodgman, 1974)."""
    for axis, side in ((0, width), (1, height)):
        for limit, inward in ((-side, 1), (2 * side, -1)):
            kept: list[tuple[float, float]] = []
            for a, b in zip([*points[-1:], *points[:-1]], points, strict=True):
                inside = (b[axis] - limit) * inward >= 0
                if inside != ((a[axis] - limit) * inward >= 0):
                    share = (limit - a[axis]) / (b[axis] - a[axis])
                    other = a[1 - axis] + share * (b[1 - axis] - a[1 - axis])
                    kept.append((other, limit) if axis else (limit, other))
                if inside:
                    kept.append(b)
            points = kept
    return points


def _collinear(xs: Sequence[float], ys: Sequence[float]) -> bool:
    """Whether all points lie on one line: a crossing outline may also sum to zero, yet covers pixels."""
    far = max(range(len(xs)), key=lambda i: (xs[i] - xs[0]) ** 2 + (ys[i] - ys[0]) ** 2)
    ax, ay = xs[far] - xs[0], ys[far] - ys[0]
    scale = ax * ax + ay * ay
    return all(abs(ax * (y - ys[0]) - ay * (x - xs[0])) <= 1e-9 * scale for x, y in zip(xs, ys, strict=True))


def _runs(rle: dict[str, Any], width: int, height: int) -> tuple[dict[str, Any] | None, str]:
    """Run lengths with a compressed string, or None; and why not, or ""."""
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list) or [whole_number(side) for side in size] != [height, width]:
        return None, f"RLE size {shown(size)} is not that of the image, [{height}, {width}]"
    if isinstance(counts, str):
        decoded = _decode_counts(counts)
        if decoded is None:
            return None, "RLE counts are not a valid compressed string"
        least, total, covered = int(decoded.min(initial=0)), int(decoded.sum()), int(decoded[1::2].sum())
    else:
        numbers = [n for count in counts if (n := whole_number(count)) is not None] if isinstance(counts, list) else []
        if not isinstance(counts, list) or len(numbers) != len(counts):
            return None, "RLE counts are neither a string nor integers"
        least, total, covered = min(numbers, default=0), sum(numbers), sum(numbers[1::2])
    if least < 0 or total != width * height:
        return None, f"RLE counts cover {total} pixels, the image has {width * height}"
    if covered == 0:
        return None, "zero area"
    if isinstance(counts, list):
        # Lists of numbers take many times the memory, and YouTube-VIS is full of them.
        counts = run_lengths.compressed(numbers, width, height)
    return {"size": [height, width], "counts": counts}, ""


_LONGEST_COUNT = 6
"""Characters of a number in a compressed string: the 30 bits that pycocotools' shifts of 32-bit numbers leave whole.
Differences of runs in a picture of :data:`MAX_PIXELS` take 28 bits; longer numbers would also let sums wrap around to
what the picture has."""


def _decode_counts(text: str) -> np.ndarray | None:
    """Run lengths int64 of a compressed RLE string (COCO's variant of LEB128: 5 bits a character, differences to the
    run before the last from the fourth on); None when it is not one. pycocotools trusts the string and may read or
    write out of bounds, so every string is looked at, and videos have hundreds of thousands of them."""
    bits = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8).astype(np.int64) - 48
    if not len(bits):
        return bits
    ends = (bits & 0x20) == 0
    if bits.min() < 0 or bits.max() > 63 or not ends[-1]:
        return None
    stops = np.flatnonzero(ends)
    starts = np.concatenate(([0], stops[:-1] + 1))
    lengths = stops - starts + 1
    if lengths.max() > _LONGEST_COUNT:
        return None
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    values = np.add.reduceat((bits & 0x1F) << shifts, starts)
    values -= np.where(bits[stops] & 0x10, np.int64(1) << (5 * lengths), 0)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return np.asarray(values)
