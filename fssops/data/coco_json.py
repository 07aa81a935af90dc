"""Reading COCO instances JSON: structure checked here, before anything reaches pycocotools.

A broken annotation is dropped with a warning that gives its id and the reason; a broken file is an error.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fssops.data.annotation_json import checked_size, read_tables, warn_of, whole
from fssops.data.errors import AnnotationError, DuplicateError
from fssops.data.paths import check_inside


@dataclass
class Annotation:
    """One object or crowd region.

    Attributes:
        id: annotation id.
        category: COCO category id.
        crowd: whether it outlines a group instead of one object.
        segmentation: list of polygons (arrays x0, y0, x1, y1, ... in pixels, those that cover something inside the
            image), or an RLE dict with ``counts`` and ``size``.
        area: pixels, as the file says; None where it does not say a positive number.
    """

    id: int
    category: int
    crowd: bool
    segmentation: Any
    area: float | None = None


@dataclass
class CocoFile:
    """A checked COCO instances file.

    Attributes:
        path: where it was read from.
        categories: category id -> name, by ascending id.
        images: image id -> (file name, width, height), in the order of the file.
        annotations: image id -> its usable annotations, in the order of the file.
        images_of_category: category id -> image id of each of its annotations, in the order of the file, with repeats.
        dropped: annotation id -> why it is not used.
        problems: faults that drop nothing, e.g. an id that occurs twice.
    """

    path: Path
    categories: dict[int, str] = field(default_factory=dict)
    images: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    annotations: dict[int, list[Annotation]] = field(default_factory=dict)
    images_of_category: dict[int, list[int]] = field(default_factory=dict)
    dropped: dict[int, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read(path: str | os.PathLike[str], *, warn: bool = True) -> CocoFile:
    """Read and check a COCO instances file.

    Args:
        path: the JSON file.
        warn: warn of every dropped annotation (the first fifty one by one). ``dropped`` is filled either way.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: incomplete JSON, a missing table or field, an image or category id that occurs twice.
    """
    file = Path(path)
    content = read_tables(file, ("images", "annotations", "categories"))
    result = CocoFile(file)
    for number, entry in enumerate(content["categories"]):
        identifier, name = _fields(file, "categories", number, entry, "id", "name")
        if not whole(identifier):
            raise AnnotationError(f"{file}: categories[{number}]: id must be an integer, got {identifier!r}")
        if identifier in result.categories:
            raise DuplicateError(f"{file}: category ids must be unique, got {identifier} twice")
        result.categories[identifier] = str(name)
    result.categories = dict(sorted(result.categories.items()))
    names: dict[str, int] = {}
    for number, entry in enumerate(content["images"]):
        identifier, name, *_ = _fields(file, "images", number, entry, "id", "file_name", "width", "height")
        if not whole(identifier) or not isinstance(name, str) or not name:
            raise AnnotationError(
                f"{file}: images[{number}]: id must be an integer and file_name a name, got {entry!r}"
            )
        check_inside(name, f"{file}: images[{number}]: file_name")
        width, height = checked_size(entry, f"{file}: image {identifier}")
        if identifier in result.images:
            raise DuplicateError(f"{file}: image ids must be unique, got {identifier} twice")
        if name in names:
            result.problems.append(f"images {names[name]} and {identifier} share the file {name}")
        names.setdefault(name, identifier)
        result.images[identifier] = (name, width, height)
    _read_annotations(content["annotations"], result)
    if warn:
        dropped = [f"annotation {identifier} dropped: {reason}" for identifier, reason in result.dropped.items()]
        warn_of(file, [*dropped, *result.problems])
    return result


def _fields(file: Path, table: str, number: int, entry: Any, *keys: str) -> tuple[Any, ...]:
    if not isinstance(entry, dict):
        raise AnnotationError(f"{file}: {table}[{number}] must be an object, got {type(entry).__name__}")
    for key in keys:
        if key not in entry:
            raise AnnotationError(
                f"{file}: {table}[{number}] must have a field {key!r}, got only {', '.join(entry) or 'none'}"
            )
    return tuple(entry[key] for key in keys)


def _read_annotations(entries: list[Any], result: CocoFile) -> None:
    seen: set[int] = set()
    for number, entry in enumerate(entries):
        identifier, image, category = _fields(
            result.path, "annotations", number, entry, "id", "image_id", "category_id"
        )
        if not whole(identifier):
            raise AnnotationError(f"{result.path}: annotations[{number}]: id must be an integer, got {identifier!r}")
        if identifier in seen:
            result.problems.append(f"annotation id {identifier} occurs more than once")
        seen.add(identifier)
        crowd = entry.get("iscrowd") or 0
        if crowd in ("0", "1"):  # as some exporters write it
            crowd = int(crowd)
        if not _is_key(image, result.images):
            result.dropped[identifier] = f"image id {image!r:.80} not in images"
        elif not _is_key(category, result.categories):
            result.dropped[identifier] = f"category id {category!r:.80} not in categories"
        elif crowd not in (0, 1):
            result.dropped[identifier] = f"iscrowd is neither 0 nor 1 but {crowd!r:.80}"
        else:
            result.images_of_category.setdefault(category, []).append(image)
            _, width, height = result.images[image]
            reason = fault(entry.get("segmentation"), width, height)
            if reason:
                result.dropped[identifier] = reason
            else:
                segmentation = _compact(entry["segmentation"], width, height)
                annotation = Annotation(identifier, category, bool(crowd), segmentation, _positive(entry.get("area")))
                result.annotations.setdefault(image, []).append(annotation)


def _is_key(value: Any, table: Container[int]) -> bool:
    """Whether a value of any JSON type, lists and objects too, is an id of a table."""
    return isinstance(value, (int, float)) and value in table


def _positive(value: Any) -> float | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def _compact(segmentation: Any, width: int, height: int) -> Any:
    """Keep what can be drawn, as arrays: a quarter of the memory of lists, which COCO's 860,000 annotations need."""
    if isinstance(segmentation, dict):
        return segmentation
    return [array("d", polygon) for polygon in segmentation if _polygon_fault(polygon, width, height) is None]


def fault(segmentation: Any, width: int, height: int) -> str | None:
    """Why a segmentation cannot be drawn on an image of this size; None when it can.

    A list of polygons is refused as a whole when one of its polygons is malformed, and when none covers any area
    inside the image.
    """
    if segmentation is None:
        return "no segmentation"
    if isinstance(segmentation, dict):
        return _rle_fault(segmentation, width, height)
    if not isinstance(segmentation, list):
        return f"segmentation is neither polygons nor RLE but {type(segmentation).__name__}"
    if not segmentation:
        return "empty polygon list"
    faults = [_polygon_fault(polygon, width, height) for polygon in segmentation]
    malformed = [f for f in faults if f and f not in ("zero area", "outside the image")]
    if malformed:
        return malformed[0]
    return faults[0] if all(faults) else None


def _polygon_fault(polygon: Any, width: int, height: int) -> str | None:
    if not isinstance(polygon, list):
        return f"polygon is not a list but {type(polygon).__name__}"
    if not polygon:
        return "empty polygon"
    if len(polygon) % 2:
        return f"odd number of coordinates ({len(polygon)})"
    if len(polygon) < 6:
        return "fewer than 3 points"
    try:
        finite = all(map(math.isfinite, polygon))
    except (TypeError, OverflowError):
        return "coordinates are not numbers"
    if not finite:
        return "coordinates are not finite"
    xs, ys = polygon[0::2], polygon[1::2]
    if max(xs) <= 0 or max(ys) <= 0 or min(xs) >= width or min(ys) >= height:
        return "outside the image"
    # Shoelace formula around the first point, where the products stay small and exact.
    twice, px, py = 0.0, xs[-1] - xs[0], ys[-1] - ys[0]
    for x, y in zip(xs, ys, strict=True):
        dx, dy = x - xs[0], y - ys[0]
        twice += px * dy - dx * py
        px, py = dx, dy
    return "zero area" if twice == 0 and _collinear(xs, ys) else None


def _collinear(xs: Sequence[float], ys: Sequence[float]) -> bool:
    """Whether all points lie on one line: a crossing outline may also sum to zero, yet covers pixels."""
    far = max(range(len(xs)), key=lambda i: (xs[i] - xs[0]) ** 2 + (ys[i] - ys[0]) ** 2)
    ax, ay = xs[far] - xs[0], ys[far] - ys[0]
    scale = ax * ax + ay * ay
    return all(abs(ax * (y - ys[0]) - ay * (x - xs[0])) <= 1e-9 * scale for x, y in zip(xs, ys, strict=True))


def _rle_fault(rle: dict[str, Any], width: int, height: int) -> str | None:
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        return f"RLE size {size} is not that of the image, [{height}, {width}]"
    if isinstance(counts, str):
        decoded = _decode_counts(counts)
        if decoded is None:
            return "RLE counts are not a valid compressed string"
        least, total, covered = int(decoded.min(initial=0)), int(decoded.sum()), int(decoded[1::2].sum())
    elif isinstance(counts, list) and all(map(whole, counts)):
        least, total, covered = min(counts, default=0), sum(counts), sum(counts[1::2])
    else:
        return "RLE counts are neither a string nor integers"
    if least < 0 or total != width * height:
        return f"RLE counts cover {total} pixels, the image has {width * height}"
    return "zero area" if covered == 0 else None


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
