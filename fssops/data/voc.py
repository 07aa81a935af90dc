"""PASCAL VOC 2012 layout, with or without the SBD additions.

ROOT (or ROOT/VOC2012, ROOT/VOCdevkit/VOC2012)
    JPEGImages/NAME.jpg
    SegmentationClass/NAME.png       palette PNG of class ids 0..20, 255 ignored
    SegmentationClassAug/NAME.png    the same with SBD's images (VOC + SBD, 12,031 files), where present
    SegmentationObject[Aug]/NAME.png instance numbers, where present
    ScribbleAugAuto/NAME.png         PANet's scribbles, where present
    ImageSets/Segmentation/SPLIT.txt one NAME a line, or "JPEGImages/NAME.jpg SegmentationClassAug/NAME.png"
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from fssops.data.errors import AnnotationError, DuplicateError, MaskSizeError
from fssops.data.images import image_size, read_mask
from fssops.data.paths import check_inside
from fssops.data.sources import PairedFilesSource, keep_classes

_NAMES = (
    ("aeroplane", "bicycle", "bird", "boat", "bottle"),
    ("bus", "car", "cat", "chair", "cow"),
    ("diningtable", "dog", "horse", "motorbike", "person"),
    ("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CLASSES = dict(enumerate((name for row in _NAMES for name in row), start=1))
"""VOC's 20 classes, ids 1..20 in alphabetical order."""


def find_root(root: str | os.PathLike[str]) -> Path:
    """The folder that holds JPEGImages: ``root`` itself or the usual places below it.

    Raises:
        FileNotFoundError: none of them does.
    """
    base = Path(root)
    for candidate in (base, base / "VOC2012", base / "VOCdevkit" / "VOC2012"):
        if (candidate / "JPEGImages").is_dir():
            return candidate
    raise FileNotFoundError(f"{base}: root must hold JPEGImages (PASCAL VOC layout), got no such folder")


def splits(root: str | os.PathLike[str]) -> list[str]:
    """Names of the list files under ImageSets/Segmentation."""
    return sorted(p.stem for p in (find_root(root) / "ImageSets" / "Segmentation").glob("*.txt"))


def read_list(file: str | os.PathLike[str]) -> list[tuple[str, str | None, str | None]]:
    """Read a list of images: (name, image path, label path), the paths None where a line holds a bare name.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: an empty list, a repeated name, or a line of more than two columns.
    """
    path = Path(file)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: list file must exist, got nothing of that name") from None
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: list file must be UTF-8 text, got {error}") from error
    entries: list[tuple[str, str | None, str | None]] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
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


class VOCSource(PairedFilesSource):
    """PASCAL VOC 2012 in its own layout.

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

    format = "voc"

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        *,
        list_file: str | os.PathLike[str] | None = None,
        labels: str | None = None,
        classes: Mapping[int, str] | None = None,
        unknown: Literal["error", "ignore"] = "error",
    ) -> None:
        self.root = find_root(root)
        path = Path(list_file) if list_file else self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not list_file and not path.is_file():
            known = ", ".join(splits(root)) or "no list at all"
            raise FileNotFoundError(f"{path}: split must name a list file, got {split!r} (there are: {known})")
        if unknown not in ("error", "ignore"):
            raise ValueError(f"VOCSource: unknown must be error or ignore, got {unknown!r}")
        self.unknown = unknown
        self.labels = labels or self._label_folder(split)
        files = {
            name: (
                self.root / image.lstrip("/") if image else self.root / "JPEGImages" / f"{name}.jpg",
                self.root / label.lstrip("/") if label else self.root / self.labels / f"{name}.png",
            )
            for name, image, label in read_list(path)
        }
        super().__init__(split if not list_file else path.stem, classes or CLASSES, files)

    def _label_folder(self, split: str) -> str:
        plain, augmented = "SegmentationClass", "SegmentationClassAug"
        has_plain, has_augmented = (self.root / plain).is_dir(), (self.root / augmented).is_dir()
        if not has_plain and not has_augmented:
            raise FileNotFoundError(f"{self.root}: root must hold {plain} or {augmented}, got neither")
        return augmented if has_augmented and (split.endswith("aug") or not has_plain) else plain

    def label_map(self, name: str, class_ids: Sequence[int] | None = None) -> np.ndarray:
        image, label = self.paths(name)
        allowed = [0, *self.classes]
        mask = read_mask(label, size=image_size(image), allowed=allowed, unknown=self.unknown)
        return keep_classes(mask, class_ids)

    def instance_map(self, name: str, class_id: int) -> np.ndarray:
        """Objects of a class by SegmentationObject[Aug] where present, else connected components."""
        for folder in ("SegmentationObjectAug", "SegmentationObject"):
            file = self.root / folder / f"{name}.png"
            if file.is_file():
                label = self.label_map(name, [class_id])
                numbers = read_mask(file)
                if numbers.shape != label.shape:
                    raise MaskSizeError(
                        f"{file}: instance map must have the size of its label map, "
                        f"{label.shape[1]} x {label.shape[0]}, got {numbers.shape[1]} x {numbers.shape[0]}"
                    )
                return np.where((label == class_id) & (numbers != 255), numbers, 0).astype(np.int32)
        return super().instance_map(name, class_id)

    def scribble_map(self, name: str) -> np.ndarray | None:
        """PANet's stored scribbles, where the folder ScribbleAugAuto has the image."""
        file = self.root / "ScribbleAugAuto" / f"{name}.png"
        if not file.is_file():
            return None
        return read_mask(file, size=image_size(self.paths(name)[0]))

    def describe(self) -> dict[str, object]:
        return {**super().describe(), "labels": self.labels}
