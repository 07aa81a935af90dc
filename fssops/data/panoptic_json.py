"""Reading COCO panoptic JSON, and a PNG against its list of segments.

A PNG holds the segment id of every pixel as R + 256 G + 65536 B; 0 is void.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fssops.data.annotation_json import (
    Problem,
    checked_id,
    checked_name,
    checked_size,
    read_tables,
    tell,
    usable_rows,
)
from fssops.data.errors import AnnotationError, DuplicateError, MaskError, MaskSizeError, PanopticMismatchError
from fssops.data.images import read_numbers
from fssops.data.json_values import identifier, shown, whole_number, yes_or_no
from fssops.truth import Classes, Segment


@dataclass
class PanopticImage:
    """One row of the file.

    Attributes:
        id: image id.
        image: file name of the image.
        map: file name of the PNG.
        size: (width, height) of both; None where the file does not say it.
        segments: of the PNG.
        areas: pixels of a segment by its id, where the file says something.
        void: ids in the PNG of segments that cannot be used, which are read as void.
    """

    id: int | str
    image: str
    map: str
    size: tuple[int, int] | None
    segments: list[Segment] = field(default_factory=list)
    areas: dict[int, Any] = field(default_factory=dict)
    void: set[int] = field(default_factory=set)


@dataclass
class PanopticFile:
    """A checked panoptic file: its classes, its images by name of the image file, and what was left out."""

    path: Path
    classes: Classes
    images: dict[str, PanopticImage]
    problems: list[Problem]


def read(path: str | os.PathLike[str]) -> PanopticFile:
    """Read and check a panoptic JSON file; the PNGs are looked at by :func:`read_map`.

    What is broken is left out with a warning, an image or a segment, whose pixels are void then; a broken file is an
    error.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: incomplete JSON, a missing table, a broken category, image ids that occur twice, an image that
            is annotated twice, or none that can be used.
    """
    file = Path(path)
    content = read_tables(file, ("images", "annotations", "categories"))
    classes = Classes.from_rows(content["categories"], str(file))
    problems: list[Problem] = []
    images: dict[int | str, tuple[str, tuple[int, int] | None]] = {}
    for number, name, size in usable_rows(file, "images", content["images"], problems, _image):
        if number in images:
            raise DuplicateError(f"{file}: image ids must be unique, got {number} twice")
        images[number] = (name, size)

    def annotation(row: Any, where: str) -> tuple[PanopticImage, list[Any]]:
        if not isinstance(row, dict) or not isinstance(row.get("segments_info"), list):
            raise AnnotationError(f"{where} must have image_id, file_name and a list segments_info, got {shown(row)}")
        number = identifier(row.get("image_id"))
        if number not in images:
            raise AnnotationError(f"{where}: image_id must be listed in images, got {shown(row.get('image_id'))}")
        assert number is not None
        map_name = checked_name(row.get("file_name"), f"{where}: file_name")
        name, size = images[number]
        return PanopticImage(number, name, map_name, size), row["segments_info"]

    annotated: dict[str, PanopticImage] = {}
    for entry, rows in usable_rows(file, "annotations", content["annotations"], problems, annotation):
        if entry.image in annotated:
            raise DuplicateError(f"{file}: an image must be annotated once, got {entry.image} again")
        annotated[entry.image] = entry
        _read_segments(entry, rows, classes, problems)
    if not annotated:
        raise AnnotationError(f"{file}: there must be at least one annotated image, got none")
    tell(file, problems)
    return PanopticFile(file, classes, annotated, problems)


def _image(row: Any, where: str) -> tuple[int | str, str, tuple[int, int] | None]:
    number = checked_id(row, where)
    name = checked_name(row.get("file_name"), f"image {number}: file_name")
    says_size = row.get("width") is not None or row.get("height") is not None
    return number, name, checked_size(row, f"image {number}") if says_size else None


def _read_segments(entry: PanopticImage, rows: list[Any], classes: Classes, problems: list[Problem]) -> None:
    """Fill ``segments``, ``areas`` and ``void``."""
    for row in rows:
        number, category, crowd = None, None, None
        if isinstance(row, dict):
            number, category = whole_number(row.get("id")), whole_number(row.get("category_id"))
            crowd = yes_or_no(row.get("iscrowd") or 0)
        known = {segment.id for segment in entry.segments}
        if number is None or not 0 < number < 1 << 24:
            kind, fault = "bad_annotation", f"segment ids must be integers from 1 to {(1 << 24) - 1}, got {shown(row)}"
        elif number in known or number in entry.void:
            kind, fault = "duplicate_id", f"segment ids must be unique, got {number} twice"
            entry.segments = [segment for segment in entry.segments if segment.id != number]
        elif category not in classes.index_of:
            rule = f"category_id must be one of the {len(classes)} categories"
            kind, fault = "unknown_id", f"segment {number}: {rule}, got {shown(row.get('category_id'))}"
        elif crowd is None:
            kind, fault = "bad_annotation", f"segment {number}: iscrowd must be 0 or 1, got {shown(row['iscrowd'])}"
        else:
            assert category is not None
            entry.segments.append(Segment(number, classes.index_of[category], crowd))
            if "area" in row:
                entry.areas[number] = row["area"]
            continue
        if number is not None:
            entry.void.add(number)
        problems.append((kind, f"image {entry.id}: {fault}; its pixels are read as void"))


def decode_ids(pixels: np.ndarray) -> np.ndarray:
    """Segment ids of an RGB picture: uint8 [H, W, 3] -> int32 [H, W]."""
    four = np.zeros((*pixels.shape[:2], 4), dtype=np.uint8)
    four[..., :3] = pixels
    return np.asarray(four.view("<i4")[..., 0], dtype=np.int32)


def encode_ids(ids: np.ndarray) -> np.ndarray:
    """The picture of segment ids: [H, W] of 0..2^24-1 -> uint8 [H, W, 3]."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def read_map(path: Path, entry: PanopticImage) -> np.ndarray:
    """Read a PNG and compare it with its JSON entry.

    Returns:
        segment ids int32 [H, W].

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
    size = (ids.shape[1], ids.shape[0])
    if entry.size not in (None, size):
        raise MaskSizeError(
            f"{path}: panoptic map must have the size that the JSON gives, {' x '.join(map(str, entry.size or ()))}, "
            f"got {size[0]} x {size[1]}"
        )
    if entry.void:
        ids[np.isin(ids, sorted(entry.void))] = 0
    problem = next(disagreements(ids, [segment.id for segment in entry.segments]), None)
    if problem is not None:
        raise PanopticMismatchError(f"{path}: {problem}")
    return ids


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
