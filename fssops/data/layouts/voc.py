"""PASCAL VOC 2012, with or without the SBD additions, and data of one's own in its form, as CVAT writes it.

ROOT (or ROOT/VOC2012, ROOT/VOCdevkit/VOC2012)
    JPEGImages/NAME.jpg              (or .png, ...)
    SegmentationClass/NAME.png       palette PNG of class ids 0..20, 255 ignored
    SegmentationClassAug/NAME.png    the same with SBD's images (VOC + SBD, 12,031 files), where present
    SegmentationObject[Aug]/NAME.png instance numbers, where present
    ScribbleAugAuto/NAME.png         PANet's scribbles, where present
    ImageSets/Segmentation/SPLIT.txt one NAME a line, or "JPEGImages/NAME.jpg SegmentationClassAug/NAME.png"
    labelmap.txt                     NAME:R,G,B:: of other classes than VOC's 20, where present; the maps are of colours
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from fssops.data.colour_maps import read_code, read_colour_map, read_packed
from fssops.data.errors import AnnotationError, DuplicateError, MaskValueError
from fssops.data.images import SUFFIXES, image_size, read_mask
from fssops.data.label_maps import LabelMapSource, OnUnknown, Pairs
from fssops.data.layout import DataTruth, Layout, few_shot_view, ids_as_numbers
from fssops.data.paths import check_inside
from fssops.data.source import PathLike
from fssops.data.text_files import read_lines
from fssops.labels import IGNORE
from fssops.truth import Classes, ObjectTruth, Truth

NAMES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable"),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
"""VOC's 20 classes, ids 1..20 in alphabetical order."""

LABEL_MAP = "labelmap.txt"

_ROOTS = (".", "VOC2012", "VOCdevkit/VOC2012")


def _with_background(names: Mapping[int, str]) -> Classes:
    listed = {0: "background", **dict(sorted(names.items()))}
    return Classes.from_names(list(listed.values()), range(1, len(listed)), ids=list(listed))


def _classes(truth: DataTruth) -> Classes:
    """Background and 20 classes of label maps; else the 20."""
    if truth == "semantic":
        return _with_background(dict(enumerate(NAMES, start=1)))
    return Classes.from_names(NAMES, range(len(NAMES)), ids=range(1, len(NAMES) + 1))


def find_root(root: PathLike) -> Path:
    """The folder that holds JPEGImages: ``root`` itself or the usual places below it.

    Raises:
        FileNotFoundError: none of them does.
    """
    base = Path(root)
    for below in _ROOTS:
        if (base / below / "JPEGImages").is_dir():
            return base / below
    raise FileNotFoundError(f"{base}: root must hold JPEGImages (PASCAL VOC layout), got no such folder")


def read_list(file: PathLike) -> list[tuple[str, str | None, str | None]]:
    """Read a list of images: (name, image path, label path), the paths None where a line holds a bare name.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: an empty list, a repeated name, or a line of more than two columns.
    """
    path = Path(file)
    entries: list[tuple[str, str | None, str | None]] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, "list file"), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) > 2:
            raise AnnotationError(f"{path}: line {number} must hold a name, or an image and a label path, got {line!r}")
        name = Path(words[0]).stem if len(words) == 2 else words[0]
        if name in seen:
            raise DuplicateError(
                f"{path}: every image must be listed once, got {name!r} in lines {seen[name]} and {number}"
            )
        seen[name] = number
        for word in words:
            # Published lists of two columns begin their paths with a slash that means the data set's folder.
            check_inside(word.lstrip("/") if len(words) == 2 else word, f"{path}: line {number}")
        entries.append((name, words[0], words[1]) if len(words) == 2 else (name, None, None))
    if not entries:
        raise AnnotationError(f"{path}: list file must name at least one image, got none")
    return entries


def _image_file(folder: Path, name: str) -> Path:
    """The image of a name; the JPEG where it is missing."""
    usual = folder / f"{name}.jpg"
    others = (folder / f"{name}{suffix}" for suffix in sorted(SUFFIXES))
    return usual if usual.is_file() else next((file for file in others if file.is_file()), usual)


class VOCSource(LabelMapSource):
    """Label maps of PASCAL VOC 2012; class 0 is the background.

    Args:
        root: the data set's folder; see the module.
        split: name of a list under ImageSets/Segmentation (``train``, ``val``, ``trainval``, ``trainaug``, ...).
        list_file: a list elsewhere, instead of the one that ``split`` names.
        labels: folder of the label maps. None: SegmentationClassAug for splits whose name ends in ``aug`` or where
            there is no SegmentationClass, else SegmentationClass. Two-column lists name each label file themselves.
        classes: id -> name of another class list in the same layout.
        unknown: what to do with ids outside the class list: ``error``, or ``ignore`` (255, with a warning).

    Raises:
        FileNotFoundError: a folder or list is missing.
        AnnotationError: the list is broken.
    """

    def __init__(
        self,
        root: PathLike,
        split: str = "train",
        *,
        list_file: PathLike | None = None,
        labels: str | None = None,
        classes: Mapping[int, str] | None = None,
        unknown: OnUnknown = "error",
    ) -> None:
        self.root = find_root(root)
        path = Path(list_file) if list_file else self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not list_file and not path.is_file():
            there = ", ".join(_splits(self.root)) or "no list at all"
            raise FileNotFoundError(f"{path}: split must name a list file, got {split!r} (there are: {there})")
        self.labels = labels or self._label_folder(split)
        files = {
            name: (
                self.root / image.lstrip("/") if image else _image_file(self.root / "JPEGImages", name),
                self.root / label.lstrip("/") if label else self.root / self.labels / f"{name}.png",
            )
            for name, image, label in read_list(path)
        }
        self._code = read_code(self.root / LABEL_MAP) if classes is None and (self.root / LABEL_MAP).is_file() else None
        listed = _with_background(dict(enumerate(NAMES, start=1)) if classes is None else classes)
        listed = listed if self._code is None else self._code.classes
        super().__init__(split if not list_file else path.stem, listed, Pairs(files), unknown=unknown)

    def truth(self, name: str) -> Truth:
        if self._code is None:
            return super().truth(name)
        image, label = self.paths(name)
        labels = read_colour_map(label, self._code, image_size(image), self._unknown)
        return Truth(labels.shape[0], labels.shape[1], label_map=labels)

    def _label_folder(self, split: str) -> str:
        plain, augmented = "SegmentationClass", "SegmentationClassAug"
        has_plain, has_augmented = (self.root / plain).is_dir(), (self.root / augmented).is_dir()
        if not has_plain and not has_augmented:
            raise FileNotFoundError(f"{self.root}: root must hold {plain} or {augmented}, got neither")
        return augmented if has_augmented and (split.endswith("aug") or not has_plain) else plain

    def object_file(self, name: str) -> Path | None:
        """The instance map of an image: of SegmentationObjectAug, else of SegmentationObject; None in neither."""
        self.check_name(name)
        files = (self.root / folder / f"{name}.png" for folder in ("SegmentationObjectAug", "SegmentationObject"))
        return next((file for file in files if file.is_file()), None)

    def object_numbers(self, name: str) -> np.ndarray | None:
        file = self.object_file(name)
        if file is None:
            return None
        if self._code is not None:
            return read_packed(file, image_size(self.paths(name)[0]))
        numbers = read_mask(file, size=image_size(self.paths(name)[0]))
        return np.where(numbers == IGNORE, 0, numbers).astype(np.int32)

    def scribble_map(self, name: str) -> np.ndarray | None:
        file = self.root / "ScribbleAugAuto" / f"{name}.png"
        return read_mask(file, size=image_size(self.paths(name)[0])) if file.is_file() else None

    def identity(self) -> Mapping[str, object]:
        return {"labels": self.labels}


class VOCInstanceSource(VOCSource):
    """Objects of PASCAL VOC 2012: the regions of SegmentationObject[Aug], each of the class that most of it has.

    Args:
        root: the data set's folder.
        split: as for :class:`VOCSource`.
        list_file: a list elsewhere, instead of the one that ``split`` names.
    """

    def __init__(self, root: PathLike, split: str = "train", *, list_file: PathLike | None = None) -> None:
        super().__init__(root, split, list_file=list_file)
        background = self.classes.background
        kept = [category for index, category in enumerate(self.classes.categories) if index != background]
        self._shift = 0 if background is None else 1
        self.kind, self.classes = "instance", Classes(tuple(replace(category, is_thing=True) for category in kept))

    def truth(self, name: str) -> Truth:
        labels, numbers = super().truth(name).semantic(), self.object_numbers(name)
        if numbers is None:
            missing = self.root / "SegmentationObject" / f"{name}.png"
            raise FileNotFoundError(f"{missing}: instance map must exist, got no such file")
        objects = []
        for number in np.unique(numbers[numbers > 0]).tolist():
            mask = numbers == number
            counts = np.bincount(labels[mask], minlength=IGNORE + 1)[self._shift : IGNORE]
            if not counts.any():
                file = self.object_file(name)
                raise MaskValueError(f"{file}: object {number} must lie on a class of the label map, got none there")
            objects.append(ObjectTruth(number, int(counts.argmax()), mask))
        return Truth(labels.shape[0], labels.shape[1], objects=objects)

    def truth_files(self, name: str) -> tuple[Path, ...]:
        file = self.object_file(name)
        return super().truth_files(name) if file is None else (*super().truth_files(name), file)


def _recognise(root: Path) -> str:
    places = [root / below for below in _ROOTS if (root / below / "JPEGImages").is_dir()]
    if not places:
        return "no JPEGImages"
    labels = any((place / name).is_dir() for place in places for name in ("SegmentationClass", "SegmentationClassAug"))
    return "" if labels else "no SegmentationClass beside JPEGImages"


def _splits(root: Path) -> list[str]:
    return sorted(p.stem for p in (find_root(root) / "ImageSets" / "Segmentation").glob("*.txt"))


LAYOUT = Layout(
    name="voc",
    files="JPEGImages/ SegmentationClass[Aug]/ ImageSets/Segmentation/SPLIT.txt",
    readers={
        "few-shot": few_shot_view(VOCSource, ids_as_numbers),
        "semantic": VOCSource,
        "instance": VOCInstanceSource,
    },
    recognise=_recognise,
    splits=_splits,
    classes=_classes,
)
