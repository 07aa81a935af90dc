"""YOLO segmentation, as Ultralytics reads it and Roboflow, CVAT and Label Studio export it.

    ROOT/data.yaml                  path, train, val, test, names (a list, or a map from numbers), nc
    ROOT/images/SPLIT/NAME.jpg      ROOT/labels/SPLIT/NAME.txt     or ROOT/SPLIT/images/, ROOT/SPLIT/labels/
    ROOT/images/, labels/, classes.txt                             of Label Studio, without data.yaml: split all

A split is a folder of images, a text file that lists them, or several of either; labels lie where the last ``images``
of a path is ``labels``. A line of a label file is an object: its class, and x and y of a polygon's points as shares of
the image's width and height. An image without a label file, or with an empty one, has no object.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fssops.data.errors import AnnotationError, DuplicateError
from fssops.data.images import SUFFIXES, image_size
from fssops.data.json_values import name as json_name
from fssops.data.json_values import shown, whole_number
from fssops.data.label_maps import PairedSource, Pairs
from fssops.data.layout import Layout
from fssops.data.layouts.coco import readers_of_objects
from fssops.data.listing import pictures_in
from fssops.data.outlines import HIDDEN, drawable
from fssops.data.source import PathLike
from fssops.data.text_files import read_lines
from fssops.truth import Classes, ObjectTruth, Truth

_SPLITS = ("train", "val", "test")
_TOLERANCE = 0.01
"""How far beyond the image Ultralytics lets coordinates be, as a share of it."""


def _settings_file(root: Path) -> Path | None:
    """The YAML file that describes a folder, else Label Studio's list of classes."""
    named = [root / "data.yaml", root / "data.yml", root / "dataset.yaml"]
    for file in [*named, *sorted(root.glob("*.yaml"))]:
        if file.is_file():
            text = "\n" + file.read_text(encoding="utf-8", errors="replace")
            if re.search(r"\n(names|nc)\s*:", text) and re.search(r"\n(train|val)\s*:", text):
                return file
    labelled = (root / "images").is_dir() and any((root / "labels").glob("**/*.txt"))
    return root / "classes.txt" if labelled and (root / "classes.txt").is_file() else None


def _read_settings(root: Path) -> tuple[Path, dict[str, Any]]:
    """The file and what it says, as of data.yaml."""
    file = _settings_file(root)
    if file is None:
        raise FileNotFoundError(f"{root / 'data.yaml'}: data.yaml must say names, train and val, got no file that does")
    if file.name == "classes.txt":
        names = [line.strip() for line in read_lines(file, "list of classes") if line.strip()]
        return file, {"names": names, "all": "images"}
    import yaml

    try:
        content = yaml.safe_load("\n".join(read_lines(file, "data.yaml")))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise AnnotationError(f"{file}: data.yaml must be YAML, got {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise AnnotationError(f"{file}: data.yaml must map names to values, got {shown(content)}")
    return file, content


def _classes(file: Path, content: dict[str, Any]) -> Classes:
    names, number = content.get("names"), content.get("nc")
    if names is None and (count := whole_number(number)) is not None:
        names = [f"class {index}" for index in range(count)]
    table = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(table, dict) or not table:
        raise AnnotationError(f"{file}: names must be a list, or map numbers to names, got {shown(names)}")
    if number is not None and whole_number(number) != len(table):
        raise AnnotationError(f"{file}: nc must be the number of names, {len(table)}, got {shown(number)}")
    rows = [{"id": key, "name": str(value) if type(value) in (int, bool) else value} for key, value in table.items()]
    return Classes.from_rows(rows, str(file), things=True)


def _splits(root: Path) -> list[str]:
    content = _read_settings(root)[1]
    return [split for split in ("all", *_SPLITS) if content.get(split)]


def _places(root: Path, file: Path, content: dict[str, Any], split: str) -> list[Path]:
    """Folders of images of a split, and lists of them; all below the data set's folder."""
    value = content.get(split)
    found = []
    for text in value if isinstance(value, list) else [value]:
        if (place_named := json_name(text)) is None:
            there = ", ".join(_splits(root)) or "none"
            raise FileNotFoundError(
                f"{file}: {split} must name a folder of images, got {shown(text)} (splits there: {there})"
            )
        # Roboflow writes ../train/images of its own folder, and some write the absolute path of another machine.
        below = place_named.replace("\\", "/")
        while below.startswith(("../", "./")):
            below = below.partition("/")[2]
        starts = [*([root / content["path"]] if json_name(content.get("path")) else []), root]
        inside = [start / below for start in starts if (start / below).resolve().is_relative_to(root.resolve())]
        place = next((place for place in inside if place.exists()), None)
        if place is None:
            raise FileNotFoundError(
                f"{file}: {split} must be a folder of images below {root}, got {text!r}; write it from that folder on"
            )
        found.append(place)
    return found


def _images(root: Path, place: Path) -> Iterator[Path]:
    """The images of a folder, or those that a list names, one a line from the list's folder on."""
    if place.is_dir():
        yield from pictures_in(place).files
        return
    for number, line in enumerate(read_lines(place, "list of images"), start=1):
        if not line.strip():
            continue
        path = place.parent / line.strip().replace("\\", "/").removeprefix("./")
        if not path.resolve().is_relative_to(root.resolve()) or path.suffix.lower() not in SUFFIXES:
            raise AnnotationError(f"{place}: line {number} must name an image below {root}, got {shown(line)}")
        yield path


def _label_file(image: Path, root: Path) -> Path:
    parts = list(image.relative_to(root).parts)
    places = [number for number, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return root.joinpath(*parts).with_suffix(".txt")


class YOLOSource(PairedSource):
    """Objects of YOLO segmentation; layout in the module.

    Args:
        root: the folder.
        split: train, val or test as data.yaml names them, or ``all`` of Label Studio; None takes the first there is.
        boxes: lines of a class and a box alone are an ``error``, or left out (``ignore``).

    Raises:
        FileNotFoundError: no data.yaml, or a split's folder is missing.
        AnnotationError: data.yaml breaks a rule, or there is no image.
    """

    def __init__(
        self, root: PathLike, split: str | None = None, *, boxes: Literal["error", "ignore"] = "error"
    ) -> None:
        if boxes not in ("error", "ignore"):
            raise ValueError(f"YOLOSource: boxes must be error or ignore, got {boxes!r}")
        base, self._boxes = Path(root), boxes
        file, content = _read_settings(base)
        self._settings = file.name
        split = split or next(iter(_splits(base)), "train")
        pairs = Pairs({})
        for place in _places(base, file, content, split):
            for image in _images(base, place):
                name = image.relative_to(base).as_posix()
                if name in pairs.files:
                    raise DuplicateError(f"{file}: {split} must name every image once, got {name} twice")
                pairs.files[name] = (image, _label_file(image, base))
        if not pairs.files:
            raise AnnotationError(f"{file}: {split} must hold at least one image, got none")
        labels = {label for _, label in pairs.files.values()}
        free = [
            path for folder in {label.parent for label in labels} for path in folder.glob("*.txt") if path not in labels
        ]
        without = [image for image, label in pairs.files.values() if not label.is_file()]
        if free:
            pairs.left_out.append(
                f"{free[0].parent}: {len(free)} left out (no image of their name), e.g. {free[0].name}"
            )
        if without:
            pairs.left_out.append(
                f"{base}: {len(without)} images without a label file have no object, e.g. {without[0].name}"
            )
        super().__init__("instance", split, _classes(file, content), pairs)

    def truth(self, name: str) -> Truth:
        image, file = self.paths(name)
        width, height = image_size(image)
        rows = read_lines(file, "label file") if file.is_file() else []
        objects = []
        for number, line in enumerate(rows, start=1):
            polygon = self._polygon(line, f"{file}: line {number}")
            if polygon is None:
                continue
            label, shares = polygon
            outline, faults = drawable([(shares * (width, height)).reshape(-1).tolist()], width, height)
            if outline is None and faults[0] not in HIDDEN:
                raise AnnotationError(f"{file}: line {number} must be a polygon, got {faults[0]}")
            if outline is not None:
                objects.append(ObjectTruth(number, label, [np.array(outline[0]).reshape(-1, 2)]))
        return Truth(height, width, objects=objects)

    def _polygon(self, line: str, where: str) -> tuple[int, np.ndarray] | None:
        """Class index and points [n, 2] of a line; None of an empty one."""
        words = line.split()
        if not words:
            return None
        try:
            label, *values = map(float, words)
        except ValueError:
            raise AnnotationError(f"{where} must be a class and numbers, got {shown(line)}") from None
        if len(values) == 4:
            if self._boxes == "ignore":
                return None
            raise AnnotationError(
                f"{where} must be a class and a polygon of at least 3 points, got a box (labels for detection); "
                "boxes=ignore leaves such lines out"
            )
        if len(values) < 6 or len(values) % 2:
            raise AnnotationError(
                f"{where} must be a class, and x and y of at least 3 points, got {len(words)} numbers"
            )
        index = self.classes.index_of.get(int(label)) if label.is_integer() else None
        if index is None:
            ids = self.classes.index_of
            raise AnnotationError(
                f"{where}: class must be one of {self._settings}, {min(ids)} to {max(ids)}, got {words[0]}"
            )
        wrong = next((value for value in values if not -_TOLERANCE <= value <= 1 + _TOLERANCE), None)
        if wrong is not None:
            raise AnnotationError(
                f"{where}: coordinates must be shares of the image's size, from 0 to 1, got {wrong:g}"
                f"{' (are they pixels?)' if wrong > 2 else ''}"
            )
        return index, np.array(values).reshape(-1, 2)


def _recognise(root: Path) -> str:
    return "" if _settings_file(root) else "no data.yaml with names and train, nor classes.txt beside images and labels"


LAYOUT = Layout(
    name="yolo",
    files="data.yaml, images/SPLIT/ labels/SPLIT/NAME.txt (polygons); or SPLIT/images/ SPLIT/labels/",
    readers=readers_of_objects(YOLOSource),
    recognise=_recognise,
    splits=_splits,
)
