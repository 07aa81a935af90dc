"""Reading COCO instances JSON: structure checked here, before anything reaches pycocotools.

What is broken is left out and told, an image, an annotation or one polygon of it; a broken file is an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fssops.data.annotation_json import (
    Problem,
    checked_id,
    checked_name,
    checked_size,
    own_ids,
    read_tables,
    tell,
    usable_rows,
)
from fssops.data.errors import DuplicateError
from fssops.data.json_values import identifier, positive, shown, whole_number, yes_or_no
from fssops.data.outlines import drawable
from fssops.truth import Classes

ImageId = int | str


@dataclass
class Annotation:
    """One object or crowd region.

    Attributes:
        id: annotation id.
        category: COCO category id.
        crowd: whether it outlines a group instead of one object.
        segmentation: as :func:`fssops.data.outlines.drawable` gives it.
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
        classes: its categories by ascending id, all of them countable.
        images: image id -> (file name, width, height), in the order of the file.
        annotations: image id -> its usable annotations, in the order of the file.
        images_of_category: category id -> image id of each of its annotations, in the order of the file, with repeats.
        dropped: annotation id -> why it is not used.
        problems: what else was left out, cut or numbered anew.
    """

    path: Path
    classes: Classes
    images: dict[ImageId, tuple[str, int, int]] = field(default_factory=dict)
    annotations: dict[ImageId, list[Annotation]] = field(default_factory=dict)
    images_of_category: dict[int, list[ImageId]] = field(default_factory=dict)
    dropped: dict[int, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def told(self) -> list[Problem]:
        """Everything that was found wrong."""
        dropped = [
            ("bad_annotation", f"annotation {number} dropped: {reason}") for number, reason in self.dropped.items()
        ]
        return [*dropped, *self.problems]


Adapt = Callable[[dict[str, Any]], list[Problem]]
"""Brings what one tool writes into COCO's form, in place, and tells what it left out; rows are not checked yet."""


def read(path: str | os.PathLike[str], *, adapt: Adapt | None = None, warn: bool = True) -> CocoFile:
    """Read and check a COCO instances file.

    Args:
        path: the JSON file.
        adapt: of a tool that writes COCO's tables in a way of its own.
        warn: warn of what is left out (the first fifty one by one). ``dropped`` and ``problems`` are filled either way.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: incomplete JSON, a missing table, a broken category, an image or category id that occurs
            twice, or no image that can be used.
    """
    file = Path(path)
    content = read_tables(file, ("images", "annotations", "categories"))
    problems = [] if adapt is None else adapt(content)
    # Colours of instances files come in many forms, and nothing but pictures depends on them.
    rows = [
        {key: row.get(key) for key in ("id", "name")} if isinstance(row, dict) else row for row in content["categories"]
    ]
    result = CocoFile(file, Classes.from_rows(rows, str(file), things=True) if rows else Classes(()), problems=problems)
    same = _read_images(content["images"], result)
    _read_annotations(content["annotations"], same, result)
    if warn:
        tell(file, result.told())
    return result


def rows_of(content: dict[str, Any], table: str) -> list[dict[str, Any]]:
    """The rows of a table that are objects, for functions that adapt them."""
    return [row for row in content[table] if isinstance(row, dict)]


def _read_images(rows: list[Any], result: CocoFile) -> dict[ImageId, ImageId]:
    """Fill ``images``; returns for every id the one under which its file is listed first."""
    same: dict[ImageId, ImageId] = {}
    first: dict[str, ImageId] = {}
    for number, name, width, height in usable_rows(result.path, "images", rows, result.problems, _image):
        if number in same:
            raise DuplicateError(f"{result.path}: image ids must be unique, got {number} twice")
        earlier = first.setdefault(name, number)
        same[number] = earlier
        if earlier == number:
            result.images[number] = (name, width, height)
        elif result.images[earlier][1:] == (width, height):
            text = f"images {earlier} and {number} share the file {name}; the annotations of both are its objects"
            result.problems.append(("duplicate_id", text))
        else:
            del same[number]
            text = f"images {earlier} and {number} share the file {name} but not its size; {number} is left out"
            result.problems.append(("duplicate_id", text))
    return same


def _image(row: Any, where: str) -> tuple[ImageId, str, int, int]:
    number = checked_id(row, where)
    name = checked_name(row.get("file_name"), f"image {number}: file_name")
    return number, name, *checked_size(row, f"image {number}")


def _read_annotations(rows: list[Any], same: dict[ImageId, ImageId], result: CocoFile) -> None:
    for number, row in own_ids(rows, result.problems):
        image, category = identifier(row.get("image_id")), whole_number(row.get("category_id"))
        crowd = yes_or_no(row.get("iscrowd") or 0)
        if image not in same:
            result.dropped[number] = f"image id {shown(row.get('image_id'))} not in images"
        elif category not in result.classes.index_of:
            result.dropped[number] = f"category id {shown(row.get('category_id'))} not in categories"
        elif crowd is None:
            result.dropped[number] = f"iscrowd is neither 0 nor 1 but {shown(row['iscrowd'])}"
        else:
            assert image is not None
            assert category is not None
            image = same[image]
            result.images_of_category.setdefault(category, []).append(image)
            _, width, height = result.images[image]
            outline, faults = drawable(row.get("segmentation"), width, height)
            if outline is None:
                result.dropped[number] = faults[0]
                continue
            annotation = Annotation(number, category, crowd, outline, positive(row.get("area")))
            result.annotations.setdefault(image, []).append(annotation)
            result.problems += [("bad_annotation", f"annotation {number}: {fault}") for fault in faults]
