"""labelme: a JSON file beside each image, as labelme, X-AnyLabeling and their like save it.

    ROOT/NAME.json    ROOT/NAME.jpg        (or whatever ``imagePath`` says, from the JSON's folder)
    ROOT/SPLIT/...                         sub-folders called train, val, test and alike are splits
    ROOT/labels.txt                        labelme's list of labels, where present: their order

Polygons, rectangles, circles and masks are read, shapes of one label and one ``group_id`` as one object; points and
lines have no area and are left out. Classes are the labels of all splits in alphabetical order. Of overlapping
objects label maps show the smaller; labelme's exporters show the later one, which is ``overlap="later"``.
"""

from __future__ import annotations

import base64
import binascii
import io
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fssops import run_lengths
from fssops.data.annotation_json import Problem, checked_size, tell
from fssops.data.errors import AnnotationError
from fssops.data.images import SUFFIXES, image_size, read_sized
from fssops.data.json_values import name as json_name
from fssops.data.json_values import shown
from fssops.data.label_maps import PairedSource, Pairs
from fssops.data.layout import Layout
from fssops.data.layouts.coco import readers_of_objects
from fssops.data.layouts.label_folder import SPLIT_NAMES
from fssops.data.listing import folders_in, pictures_in
from fssops.data.outlines import drawable
from fssops.data.source import PathLike
from fssops.data.text_files import read_json, read_lines
from fssops.truth import Classes, ObjectTruth, Truth

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

logger = logging.getLogger(__name__)

_NO_CLASS = ("__ignore__", "_background_")
"""Labels that labelme's list begins with and that name no class."""

_JSON = frozenset({".json"})


def _is_labelme(file: Path) -> bool:
    with file.open("rb") as opened:
        return b'"shapes"' in opened.read(1 << 16)


def _splits(root: Path) -> list[str]:
    """Sub-folders that are called as splits and hold JSON files; else the whole is ``all``."""
    named = [name for name in folders_in(root) if name.lower() in SPLIT_NAMES]
    return [name for name in named if pictures_in(root / name, suffixes=_JSON).files] or ["all"]


def _recognise(root: Path) -> str:
    first = [next(iter(sorted(root.glob(pattern))), None) for pattern in ("*.json", "*/*.json", "*/*/*.json")]
    return "" if any(file and file.is_file() and _is_labelme(file) for file in first) else "no JSON files with shapes"


class LabelmeSource(PairedSource):
    """Objects of labelme's JSON files; layout in the module.

    Args:
        root: the folder.
        split: a sub-folder, or ``all``; None takes ``train`` where it is there, else all.

    Raises:
        FileNotFoundError: no such split, or it holds no JSON of labelme.
        AnnotationError: a file is broken, or no shape has a label.
    """

    def __init__(self, root: PathLike, split: str | None = None) -> None:
        base, listed = Path(root), _splits(Path(root))
        split = split or ("train" if "train" in listed else "all")
        if split not in (*listed, "all"):
            raise FileNotFoundError(
                f"{base}: split must be a folder of JSON files, got {split!r} (there: {', '.join(listed)})"
            )
        folder = base if split == "all" else base / split
        self._problems: list[Problem] = []
        contents = {file: _read(file) for file in pictures_in(base, suffixes=_JSON).files if _is_labelme(file)}
        classes = _classes(base, contents.values())
        pairs, wanted = Pairs({}), {file: rows for file, rows in contents.items() if file.is_relative_to(folder)}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._objects: dict[str, list[ObjectTruth]] = {}
        for file, content in wanted.items():
            name, image = file.relative_to(folder).with_suffix("").as_posix(), _image_of(file, content, base)
            pairs.files[name] = (image, file)
            stated = {side.removeprefix("image").lower(): content.get(side) for side in ("imageWidth", "imageHeight")}
            self._sizes[name] = image_size(image) if None in stated.values() else checked_size(stated, str(file))
            self._objects[name] = list(_objects(file, content["shapes"], self._sizes[name], classes, self._problems))
        if not pairs.files:
            raise FileNotFoundError(f"{folder}: split must hold JSON files of labelme, got none")
        used = {image.resolve() for image, _ in pairs.files.values()}
        if free := [path for path in pictures_in(folder).files if path.resolve() not in used]:
            pairs.left_out.append(f"{folder}: {len(free)} left out (no JSON of their name), e.g. {free[0].name}")
        super().__init__("instance", split, classes, pairs)
        logger.info("%s: classes by their labels: %s", base, ", ".join(classes.names))
        tell(base, self._problems)

    def image(self, name: str) -> Picture:
        return read_sized(self.paths(name)[0], self._sizes[name])

    def truth(self, name: str) -> Truth:
        self.check_name(name)
        width, height = self._sizes[name]
        return Truth(height, width, objects=list(self._objects[name]))

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from self._problems


def _read(file: Path) -> dict[str, Any]:
    """A file without its picture, which may be most of it."""
    content = read_json(file, "annotation file")
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise AnnotationError(f"{file}: annotation file must hold a list 'shapes' (labelme), got {shown(content)}")
    content.pop("imageData", None)
    return content


def _classes(root: Path, contents: Any) -> Classes:
    found = {json_name(row.get("label")) for content in contents for row in content["shapes"] if isinstance(row, dict)}
    labels = sorted(label for label in found if label and label not in _NO_CLASS)
    if (root / "labels.txt").is_file():
        lines = [line.strip() for line in read_lines(root / "labels.txt", "list of labels")]
        listed = list(dict.fromkeys(line for line in lines if line and line not in _NO_CLASS))
        beyond = [label for label in labels if label not in listed]
        if beyond:
            raise AnnotationError(
                f"{root / 'labels.txt'}: list of labels must name every label, got none for {beyond[0]!r}"
            )
        labels = listed
    if not labels:
        raise AnnotationError(f"{root}: shapes must have at least one label, got none")
    return Classes.from_names(labels, range(len(labels)), ids=range(1, len(labels) + 1))


def _image_of(file: Path, content: dict[str, Any], root: Path) -> Path:
    """The image that a file names, below the data set's folder; else that of its own name; else what is missing."""
    named = json_name(content.get("imagePath"))
    beside = [
        path for path in sorted(file.parent.glob("*")) if path.stem == file.stem and path.suffix.lower() in SUFFIXES
    ]
    if named is None:
        return beside[0] if beside else file.with_suffix(".jpg")
    path = file.parent / named.replace("\\", "/")
    inside = path.resolve().is_relative_to(root.resolve())
    places = [*([path] if inside else []), file.parent / path.name, *beside]
    return next((place for place in places if place.is_file()), places[0])


def _objects(
    file: Path, shapes: Sequence[Any], size: tuple[int, int], classes: Classes, problems: list[Problem]
) -> Iterator[ObjectTruth]:
    """Objects in the order of their last shapes; what cannot be drawn is told."""
    index_of = {name: index for index, name in enumerate(classes.names)}
    grouped: dict[Any, list[Any]] = {}
    for number, row in enumerate(shapes):
        label = json_name(row.get("label")) if isinstance(row, dict) else None
        outline, reason = (None, f"label must be a class, got {shown(label)}")
        if label in index_of:
            outline, reason = _outline(row, *size)
        if reason:
            end = "" if outline is not None else "; left out"
            problems.append(("bad_annotation", f"{file}: shapes[{number}]: {reason}{end}"))
        if outline is not None:
            group = row.get("group_id")
            key = (label, number, None) if group is None else (label, None, shown(group))
            grouped[key] = [*grouped.pop(key, []), outline]
    for number, ((label, *_), parts) in enumerate(grouped.items(), start=1):
        joined: Any = parts[0]
        if all(isinstance(part, list) for part in parts):
            joined = [polygon for part in parts for polygon in part]
        elif len(parts) > 1:
            joined = np.logical_or.reduce([run_lengths.draw(part, *size) for part in parts])
        yield ObjectTruth(number, index_of[label], joined)


def _outline(row: dict[str, Any], width: int, height: int) -> tuple[Any, str]:
    """What of a shape can be drawn: polygons, run lengths or None; and what is wrong with it, or ""."""
    kind, points = row.get("shape_type") or "polygon", row.get("points")
    try:
        corners = np.array(points, dtype=np.float64).reshape(-1, 2)
    except (OverflowError, TypeError, ValueError):
        return None, f"points must be pairs of numbers, got {shown(points)}"
    if not (np.abs(corners) < 1e15).all():
        return None, f"points must be finite, and places, got {shown(points)}"
    if kind in ("rectangle", "circle", "mask") and len(corners) != 2 and (kind, len(corners)) != ("rectangle", 4):
        return None, f"a {kind} must have 2 points, got {len(corners)}"
    if kind == "mask":
        return _mask(row.get("mask"), corners, width, height)
    if kind == "rectangle" and len(corners) == 2:
        (left, top), (right, bottom) = corners.min(0), corners.max(0)
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    elif kind == "circle":
        radius = math.dist(*corners)
        angles = np.linspace(0, 2 * np.pi, round(max(16, min(512, 4 * radius))), endpoint=False)
        corners = corners[0] + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    elif kind not in ("polygon", "rectangle", "rotation"):
        return None, f"a {shown(kind)} has no area"
    drawn, faults = drawable([corners.reshape(-1).tolist()], width, height)
    return None if drawn is None else [np.array(drawn[0]).reshape(-1, 2)], "; ".join(faults)


def _mask(text: Any, corners: np.ndarray, width: int, height: int) -> tuple[Any, str]:
    """Run lengths of a PNG in base64, whose points are its first and its last pixel."""
    (left, top), (right, bottom) = corners.astype(np.int64).tolist()
    stated = (right - left + 1, bottom - top + 1)
    if min(stated) < 1 or stated[0] > width or stated[1] > height:
        return None, f"mask must fit an image of {width} x {height}, got points {shown(corners.tolist())}"
    canvas = Image.new("L", (width, height))
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as picture:
            if picture.size != stated:
                got = f"{picture.width} x {picture.height}"
                return None, f"mask must be of {stated[0]} x {stated[1]} as its points say, got {got}"
            canvas.paste(picture.convert("L"), (left, top))
    except (binascii.Error, OSError, SyntaxError, TypeError, ValueError) as error:
        return None, f"mask must be a PNG in base64, got {shown(text)} ({error})"
    whole = np.asarray(canvas) > 0
    return (run_lengths.encode(whole), "") if whole.any() else (None, "mask is empty, or outside the image")


LAYOUT = Layout(
    name="labelme",
    files="NAME.json NAME.jpg (or SPLIT/...), labels.txt for the order of classes",
    readers=readers_of_objects(LabelmeSource),
    recognise=_recognise,
    splits=_splits,
)
