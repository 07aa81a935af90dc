"""COCO instances as a few-shot source: polygons, RLE and crowds, 2014 and 2017 layouts.

    ROOT/annotations/instances_train2017.json    ROOT/train2017/000000000009.jpg
    ROOT/annotations/instances_val2014.json      ROOT/val2014/COCO_val2014_000000000042.jpg  (or ROOT/images/val2014)

Classes are numbered 1..80 in the order of the category ids, as PANet, BAM and MSANet number them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from fssops import run_lengths
from fssops.data import coco_json
from fssops.data.errors import AnnotationError, ImageSizeError
from fssops.data.images import read_image
from fssops.data.sources import FewShotSource
from fssops.structures import IGNORE


def find_annotations(root: str | os.PathLike[str], split: str) -> tuple[Path, str]:
    """The annotation file of a split and the split's full name; ``train`` finds train2017 or train2014.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: the split fits several files.
    """
    folder = Path(root) / "annotations"
    exact = folder / f"instances_{split}.json"
    if exact.is_file():
        return exact, split
    found = sorted(folder.glob(f"instances_{split}[0-9][0-9][0-9][0-9].json"))
    if len(found) == 1:
        return found[0], found[0].stem.removeprefix("instances_")
    if found:
        names = ", ".join(p.stem.removeprefix("instances_") for p in found)
        raise AnnotationError(f"{folder}: split must name one annotation file, got {split!r} (fits {names})")
    known = ", ".join(splits(root)) or "none"
    raise FileNotFoundError(f"{exact}: annotation file must exist, got no such file (splits there: {known})")


def splits(root: str | os.PathLike[str]) -> list[str]:
    """Splits that have an instances file."""
    return sorted(p.stem.removeprefix("instances_") for p in (Path(root) / "annotations").glob("instances_*.json"))


class COCOSource(FewShotSource):
    """COCO instances of one split.

    Args:
        root: folder with ``annotations`` and the images; may be None where both are given below.
        split: ``train2017``, ``val2014``, or ``train`` / ``val`` where one year is present.
        annotations: annotation file, instead of the one that ``split`` names.
        images: folder of the images, instead of the one that ``split`` names.
        crowd: what crowd regions of a class are: ``ignore`` (255 where no object of the class is drawn) or ``object``
            (part of the class's mask, as in PANet's COCO protocol), or ``background`` (as if they were not there).
        overlap: where classes overlap, the ``smaller`` object is on top, or the ``later`` annotation of the file,
            whatever its class, as MM-Former's masks are painted.
        warn: warn of annotations that are dropped.

    Attributes:
        category_ids: class number -> COCO category id.
        file: the checked annotation file, with ``dropped`` annotations and why.

    Raises:
        FileNotFoundError: a file or folder is missing.
        AnnotationError: the annotation file is broken.
    """

    format = "coco"

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        split: str = "train",
        *,
        annotations: str | os.PathLike[str] | None = None,
        images: str | os.PathLike[str] | None = None,
        crowd: Literal["ignore", "object", "background"] = "ignore",
        overlap: Literal["smaller", "later"] = "smaller",
        warn: bool = True,
    ) -> None:
        if crowd not in ("ignore", "object", "background"):
            raise ValueError(f"COCOSource: crowd must be ignore, object or background, got {crowd!r}")
        if overlap not in ("smaller", "later"):
            raise ValueError(f"COCOSource: overlap must be smaller or later, got {overlap!r}")
        if root is None and (annotations is None or images is None):
            raise ValueError("COCOSource: root must be a folder unless annotations and images are given, got None")
        base = Path(root or "")
        if annotations is not None:
            path = Path(annotations)
        else:
            path, split = find_annotations(base, split)
        self.crowd, self.overlap = crowd, overlap
        self.image_folder = self._find_images(base, split, images)
        self.file = coco_json.read(path, warn=warn)
        numbers = {category: number for number, category in enumerate(self.file.categories, start=1)}
        if len(numbers) >= IGNORE:
            raise AnnotationError(f"{path}: there must be at most {IGNORE - 1} categories, got {len(numbers)}")
        self.category_ids = {number: category for category, number in numbers.items()}
        self._class_of = numbers
        self._images = {name: identifier for identifier, (name, _, _) in self.file.images.items()}
        classes = {number: self.file.categories[category] for number, category in self.category_ids.items()}
        super().__init__(split, classes, list(self._images))

    @staticmethod
    def _find_images(base: Path, split: str, images: str | os.PathLike[str] | None) -> Path:
        if images is not None:
            folder = Path(images)
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder}: images must be a folder, got no such folder")
            return folder
        for folder in (base / split, base / "images" / split):
            if folder.is_dir():
                return folder
        raise FileNotFoundError(f"{base / split}: the images of split {split!r} must be there or under images/{split}")

    def _entry(self, name: str) -> tuple[int, int, int]:
        """Image id, width and height."""
        self._check_name(name)
        identifier = self._images[name]
        _, width, height = self.file.images[identifier]
        return identifier, width, height

    def image(self, name: str) -> Image.Image:
        _, width, height = self._entry(name)
        picture = read_image(self.image_folder / name)
        if picture.size != (width, height):
            raise ImageSizeError(
                f"{self.image_folder / name}: image must have the size its annotations are made for, "
                f"{width} x {height}, got {picture.width} x {picture.height}"
            )
        return picture

    def annotations_of(self, name: str, class_id: int | None = None) -> list[coco_json.Annotation]:
        """Usable annotations of an image, in the order of the file; of one class or of all."""
        identifier, _, _ = self._entry(name)
        found = self.file.annotations.get(identifier, [])
        return found if class_id is None else [a for a in found if self._class_of[a.category] == class_id]

    def label_map(self, name: str, class_ids: Sequence[int] | None = None) -> np.ndarray:
        """Class of every pixel; where classes overlap, ``overlap`` decides (COCO itself sets no order)."""
        if self.overlap == "later":
            return self._painted(name, class_ids)
        _, width, height = self._entry(name)
        label = np.zeros((height, width), dtype=np.uint8)
        keep = set(self.classes if class_ids is None else class_ids)
        objects: list[tuple[int, int, np.ndarray]] = []
        for annotation in self.annotations_of(name):
            number = self._class_of[annotation.category]
            if number not in keep:
                continue
            mask = run_lengths.draw(annotation.segmentation, width, height)
            if annotation.crowd and self.crowd != "object":
                label[mask] = IGNORE if self.crowd == "ignore" else label[mask]
            elif mask.any():
                objects.append((int(mask.sum()), number, mask))
        for _, number, mask in sorted(objects, key=lambda o: -o[0]):
            label[mask] = number
        return label

    def _painted(self, name: str, class_ids: Sequence[int] | None) -> np.ndarray:
        """Annotations of all classes painted over each other; those of classes that are not wanted as background."""
        _, width, height = self._entry(name)
        # In the order of pycocotools' masks, column by column: painting across memory takes several times as long.
        label = np.zeros((height, width), dtype=np.uint8, order="F")
        wanted, shown = set(self.classes if class_ids is None else class_ids), False
        for annotation in self.annotations_of(name):
            if annotation.crowd and self.crowd == "background":
                continue
            number = self._class_of[annotation.category]
            value = number if number in wanted else 0
            if annotation.crowd and self.crowd == "ignore":
                value = IGNORE
            if not value and not shown:
                continue  # background over nothing: decoding its mask is most of the work
            np.copyto(label, value, where=run_lengths.draw(annotation.segmentation, width, height))
            shown = True
        return np.ascontiguousarray(label)

    def instance_map(self, name: str, class_id: int) -> np.ndarray:
        """Objects of a class, numbered from 1, the smaller on top; crowds only under ``crowd="object"``."""
        _, width, height = self._entry(name)
        numbered = np.zeros((height, width), dtype=np.int32)
        masks = [
            run_lengths.draw(a.segmentation, width, height)
            for a in self.annotations_of(name, class_id)
            if not a.crowd or self.crowd == "object"
        ]
        for number, mask in enumerate(sorted(masks, key=lambda m: -int(m.sum())), start=1):
            numbered[mask] = number
        return numbered

    def _areas_of(self, name: str) -> dict[int, int]:
        """Area of the union of each class's objects: other classes drawn over it do not make it smaller."""
        from pycocotools import mask as coco_mask

        _, width, height = self._entry(name)
        objects: dict[int, list[dict[str, Any]]] = {}
        for annotation in self.annotations_of(name):
            if not annotation.crowd or self.crowd == "object":
                encoded = run_lengths.encode_outline(annotation.segmentation, width, height)
                objects.setdefault(self._class_of[annotation.category], []).append(encoded)
        areas = {number: int(coco_mask.area(coco_mask.merge(masks))) for number, masks in objects.items()}
        return {number: area for number, area in sorted(areas.items()) if area}

    def empty_annotations(self, name: str) -> list[int]:
        """Ids of annotations that outline something, but so small that no pixel is drawn."""
        _, width, height = self._entry(name)
        found = self.annotations_of(name)
        return [a.id for a in found if not run_lengths.draw(a.segmentation, width, height).any()]

    def images_of_annotations(self, class_id: int) -> list[str]:
        """Images with any annotation of a class, crowds included: PANet's list, which knows no minimum area.

        The order is that of pycocotools' ``getImgIds``, a Python set of image ids built in the order of the file.
        """
        category = self.category_ids[class_id]
        ordered = list(set(self.file.images_of_category.get(category, [])))
        names = dict.fromkeys(self.file.images[identifier][0] for identifier in ordered)
        return [name for name in names if self.annotations_of(name, class_id)]

    def files(self) -> Iterable[str]:
        return [str(self.file.path)]

    def describe(self) -> dict[str, object]:
        painted = {} if self.overlap == "smaller" else {"overlap": self.overlap}
        return {**super().describe(), "crowd": self.crowd, **painted}
