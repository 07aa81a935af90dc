"""Reading COCO panoptic JSON, and a PNG against its list of segments.

A PNG holds the segment id of every pixel as R + 256 G + 65536 B; 0 is void.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fssops.data.annotation_json import read_tables
from fssops.data.errors import (
    AnnotationError,
    DuplicateError,
    MaskError,
    MaskSizeError,
    PanopticMismatchError,
    UnknownCategoryError,
)
from fssops.data.images import read_numbers
from fssops.data.paths import check_inside
from fssops.truth import Classes, Segment


@dataclass
class PanopticImage:
    """One row of the file.

    Attributes:
        id: image id.
        image: file name of the image.
        map: file name of the PNG.
        height, width: of both.
        segments: raw ``segments_info``.
    """

    id: int | str
    image: str
    map: str
    height: int | None
    width: int | None
    segments: list[dict[str, Any]]


@dataclass
class PanopticFile:
    """A checked panoptic file: its classes, and its images by name of the image file."""

    path: Path
    classes: Classes
    images: dict[str, PanopticImage]


def read(path: str | os.PathLike[str]) -> PanopticFile:
    """Read and check a panoptic JSON file; the PNGs are looked at by :func:`read_map`.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: incomplete JSON, a missing table or field, ids that occur twice, or a segment of a category
            that is not listed.
    """
    file = Path(path)
    content = read_tables(file, ("images", "annotations", "categories"))
    classes = Classes.from_rows(content["categories"], str(file))
    images: dict[Any, Mapping[str, Any]] = {}
    for number, entry in enumerate(content["images"]):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise AnnotationError(f"{file}: images[{number}] must have an id and a file_name, got {str(entry)[:80]}")
        if not isinstance(entry.get("id"), int | str):
            raise AnnotationError(f"{file}: images[{number}]: id must be a number or a name, got {entry.get('id')!r}")
        if entry["id"] in images:
            raise DuplicateError(f"{file}: image ids must be unique, got {entry['id']} twice")
        for side in ("height", "width"):
            value = entry.get(side)
            if value is not None and (type(value) is not int or value < 1):
                raise AnnotationError(f"{file}: image {entry['id']}: {side} must be a positive integer, got {value!r}")
        images[entry["id"]] = entry
    annotated: dict[str, PanopticImage] = {}
    for number, entry in enumerate(content["annotations"]):
        where = f"{file}: annotations[{number}]"
        if not isinstance(entry, dict) or not {"image_id", "file_name", "segments_info"} <= set(entry):
            raise AnnotationError(f"{where} must have image_id, file_name and segments_info, got {str(entry)[:80]}")
        if not isinstance(entry["image_id"], int | str) or entry["image_id"] not in images:
            raise AnnotationError(f"{where}: image_id must be listed in images, got {entry['image_id']!r}")
        image = images[entry["image_id"]]
        _check_segments(f"{file}: image {entry['image_id']}", entry["segments_info"], classes)
        name = check_inside(str(image["file_name"]), f"{file}: image {entry['image_id']}: file_name")
        check_inside(str(entry["file_name"]), f"{where}: file_name")
        if name in annotated:
            raise DuplicateError(f"{where}: an image must be annotated once, got {name} again")
        size = image.get("height"), image.get("width")
        annotated[name] = PanopticImage(entry["image_id"], name, str(entry["file_name"]), *size, entry["segments_info"])
    if not annotated:
        raise AnnotationError(f"{file}: there must be at least one annotated image, got none")
    return PanopticFile(file, classes, annotated)


def _check_segments(where: str, segments: Any, classes: Classes) -> None:
    if not isinstance(segments, list):
        raise AnnotationError(f"{where}: segments_info must be a list, got {type(segments).__name__}")
    seen: set[int] = set()
    for segment in segments:
        identifier = segment.get("id") if isinstance(segment, dict) else None
        if not isinstance(identifier, int) or not 0 < identifier < 1 << 24:
            raise AnnotationError(
                f"{where}: segment ids must be integers from 1 to {(1 << 24) - 1}, got {identifier!r}"
            )
        if identifier in seen:
            raise DuplicateError(f"{where}: segment ids must be unique, got {identifier} twice")
        seen.add(identifier)
        category = segment.get("category_id")
        if not isinstance(category, int) or category not in classes.index_of:
            raise UnknownCategoryError(
                f"{where}: segment {identifier}: category_id must be one of the {len(classes)} categories, "
                f"got {category!r}"
            )
        if segment.get("iscrowd", 0) not in (0, 1):
            raise AnnotationError(
                f"{where}: segment {identifier}: iscrowd must be 0 or 1, got {segment['iscrowd']!r:.40}"
            )


def decode_ids(pixels: np.ndarray) -> np.ndarray:
    """Segment ids of an RGB picture: uint8 [H, W, 3] -> int32 [H, W]."""
    wide = pixels.astype(np.int32)
    return wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2]


def encode_ids(ids: np.ndarray) -> np.ndarray:
    """The picture of segment ids: [H, W] of 0..2^24-1 -> uint8 [H, W, 3]."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def read_map(path: Path, entry: PanopticImage, classes: Classes) -> tuple[np.ndarray, list[Segment]]:
    """Read a PNG and compare it with its JSON entry.

    Returns:
        segment ids int32 [H, W], and the segments.

    Raises:
        FileNotFoundError: no such PNG.
        MaskSizeError: its size is not that of the JSON.
        PanopticMismatchError: ids that the JSON does not list, or listed segments without a pixel.
        MaskError: a picture that is not RGB, or stored with loss.
    """
    pixels = read_numbers(path, "panoptic map")
    if pixels.ndim != 3:
        raise MaskError(f"{path}: panoptic map must be an RGB picture of segment ids, got one number a pixel")
    ids = decode_ids(pixels)
    expected = (entry.height, entry.width)
    if None not in expected and ids.shape != expected:
        raise MaskSizeError(
            f"{path}: panoptic map must have the size that the JSON gives, {expected[1]} x {expected[0]}, "
            f"got {ids.shape[1]} x {ids.shape[0]}"
        )
    listed = [int(segment["id"]) for segment in entry.segments]
    problem = next(disagreements(ids, listed), None)
    if problem is not None:
        raise PanopticMismatchError(f"{path}: {problem}")
    segments = [
        Segment(int(s["id"]), classes.index_of[s["category_id"]], bool(s.get("iscrowd", 0))) for s in entry.segments
    ]
    return ids, segments


def disagreements(ids: np.ndarray, listed: Sequence[int]) -> Iterator[str]:
    """What differs between a map and the list of its segments, as the end of an error message."""
    present = set(np.unique(ids).tolist()) - {0}
    extra, missing = sorted(present - set(listed)), sorted(set(listed) - present)
    if extra:
        pixels = int((ids == extra[0]).sum())
        yield f"panoptic map must hold only ids of segments_info, got {_few(extra)} ({extra[0]}: {pixels} px)"
    if missing:
        yield f"every segment of segments_info must have a pixel in the panoptic map, got none of {_few(missing)}"


def _few(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values[:5]) + (", ..." if len(values) > 5 else "")
