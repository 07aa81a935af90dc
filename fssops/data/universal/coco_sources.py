"""COCO's two annotation formats as fixed-class sources; ADE20K's and Cityscapes' published conversions use them too.

instances   ROOT/annotations/instances_SPLIT.json     ROOT/SPLIT/ or ROOT/images/SPLIT/
panoptic    ROOT/annotations/panoptic_SPLIT.json      ROOT/annotations/panoptic_SPLIT/*.png
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from fssops import run_lengths
from fssops.data import coco_json
from fssops.data.errors import AnnotationError, ImageSizeError, MaskSizeError
from fssops.data.images import image_size, read_image
from fssops.data.universal import panoptic_json
from fssops.data.universal.source import UniversalSource
from fssops.truth import Classes, ObjectTruth, Truth, TruthKind

PathLike = str | os.PathLike[str]


def find_split(root: Path, prefix: str, split: str) -> tuple[Path, str]:
    """Annotation file of a split, and the split's full name; ``val`` finds val2017 where one year is there.

    Raises:
        FileNotFoundError: none.
        AnnotationError: several.
    """
    folder = root / "annotations"
    exact = folder / f"{prefix}_{split}.json"
    if exact.is_file():
        return exact, split
    found = sorted(folder.glob(f"{prefix}_{split}[0-9][0-9][0-9][0-9].json"))
    if len(found) == 1:
        return found[0], found[0].stem.removeprefix(f"{prefix}_")
    known = ", ".join(splits_with(root, prefix)) or "none"
    if found:
        raise AnnotationError(f"{folder}: split must name one annotation file, got {split!r} (there: {known})")
    raise FileNotFoundError(f"{exact}: annotation file must exist, got no such file (splits there: {known})")


def splits_with(root: Path, prefix: str) -> list[str]:
    """Splits that have an annotation file of a kind."""
    return sorted(p.stem.removeprefix(f"{prefix}_") for p in (root / "annotations").glob(f"{prefix}_*.json"))


def find_images(root: Path, split: str) -> Path:
    """Folder of a split's images.

    Raises:
        FileNotFoundError: there is none.
    """
    for folder in (root / split, root / "images" / split):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{root / split}: the images of split {split!r} must be there or under images/{split}")


def _places(
    source: UniversalSource,
    prefix: str,
    root: PathLike | None,
    split: str,
    annotations: PathLike | None,
    images: PathLike | None,
) -> tuple[Path, Path, str]:
    """Annotation file, image folder and full name of a split: as they are given, else as the layout has them."""
    if root is None and (annotations is None or images is None):
        raise ValueError(
            f"{type(source).__name__}: root must be a folder unless annotations and images are given, got None"
        )
    base = Path(root or ".")
    if annotations is None:
        path, split = find_split(base, prefix, split)
    else:
        path = Path(annotations)
    return path, Path(images) if images is not None else find_images(base, split), split


def _read_sized(path: Path, size: tuple[int, int] | None) -> Image.Image:
    picture = read_image(path)
    if size is not None and picture.size != size:
        raise ImageSizeError(
            f"{path}: image must have the size its annotations are made for, {size[0]} x {size[1]}, "
            f"got {picture.width} x {picture.height}"
        )
    return picture


class COCOInstanceSource(UniversalSource):
    """COCO instances JSON.

    Args:
        root: folder with ``annotations`` and images; may be None where both are given below.
        split: ``train2017``, or ``train`` where one year is present.
        annotations: annotation file, instead of the one that ``split`` names.
        images: folder of the images, instead of the one that ``split`` names.
        warn: warn of annotations that are dropped.

    Raises:
        FileNotFoundError: a file or folder is missing.
        AnnotationError: the file is broken.
    """

    format = "coco_instances"

    def __init__(
        self,
        root: PathLike | None,
        split: str = "train",
        *,
        annotations: PathLike | None = None,
        images: PathLike | None = None,
        warn: bool = True,
    ) -> None:
        path, self.image_folder, split = _places(self, "instances", root, split, annotations, images)
        self.file = coco_json.read(path, warn=warn)
        rows = [{"id": identifier, "name": name} for identifier, name in self.file.categories.items()]
        classes = Classes.from_rows(rows, str(path), things=True)
        self._ids = {name: identifier for identifier, (name, _, _) in self.file.images.items()}
        super().__init__("instance", split, classes, list(self._ids))

    def _entry(self, name: str) -> tuple[int, int, int]:
        self.check_name(name)
        _, width, height = self.file.images[self._ids[name]]
        return self._ids[name], width, height

    def image_id(self, name: str) -> int | str:
        return self._entry(name)[0]

    def image(self, name: str) -> Image.Image:
        _, width, height = self._entry(name)
        return _read_sized(self.image_folder / name, (width, height))

    def truth(self, name: str) -> Truth:
        identifier, width, height = self._entry(name)
        objects = [self._object(a, width, height) for a in self.file.annotations.get(identifier, [])]
        return Truth(height, width, objects=objects)

    def _object(self, annotation: coco_json.Annotation, width: int, height: int) -> ObjectTruth:
        label = self.classes.index_of[annotation.category]
        outline: list[np.ndarray] | np.ndarray
        if isinstance(annotation.segmentation, dict):
            outline = run_lengths.draw(annotation.segmentation, width, height)
        else:
            outline = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in annotation.segmentation]
        return ObjectTruth(annotation.id, label, outline, annotation.crowd, annotation.area)

    def training_names(self, kind: TruthKind) -> list[str]:
        found = self.file.annotations
        return [name for name in self.names if any(not a.crowd for a in found.get(self._ids[name], []))]

    def problems(self) -> Iterator[tuple[str, str]]:
        for identifier, reason in self.file.dropped.items():
            yield "bad_annotation", f"{self.file.path}: annotation {identifier}: {reason}"
        for text in self.file.problems:
            yield "duplicate_id", f"{self.file.path}: {text}"


class COCOPanopticSource(UniversalSource):
    """COCO panoptic JSON and PNGs.

    Args:
        root: folder with ``annotations`` and images; may be None where annotation file and images are given.
        split: ``train2017``, or ``train`` where one year is present.
        annotations: panoptic JSON, instead of the one that ``split`` names.
        maps: folder of the PNGs; None: named as the JSON.
        images: folder of the images, instead of the one that ``split`` names.
        instances: instances JSON with objects that may overlap, for training and scoring instances; images are
            matched by file name, classes by category id. ``auto``: ROOT/annotations/instances_SPLIT.json where that
            is there. None: the countable segments are the instances.

    Raises:
        FileNotFoundError: a file or folder is missing.
        AnnotationError: a file is broken.
    """

    format = "coco_panoptic"

    def __init__(
        self,
        root: PathLike | None,
        split: str = "train",
        *,
        annotations: PathLike | None = None,
        maps: PathLike | None = None,
        images: PathLike | None = None,
        instances: PathLike | None = None,
    ) -> None:
        path, self.image_folder, split = _places(self, "panoptic", root, split, annotations, images)
        self.map_folder = Path(maps) if maps is not None else path.with_suffix("")
        if not self.map_folder.is_dir():
            raise FileNotFoundError(f"{self.map_folder}: the PNGs of {path.name} must be there, got no such folder")
        self.file = panoptic_json.read(path)
        self.objects = None
        if instances == "auto":
            beside = Path(root or ".") / "annotations" / f"instances_{split}.json"
            instances = beside if beside.is_file() else None
        if instances is not None:
            self.objects = COCOInstanceSource(None, split, annotations=instances, images=self.image_folder)
        super().__init__("panoptic", split, self.file.classes, list(self.file.images))

    @property
    def label(self) -> str:
        own = super().label
        return own if self.objects is None else f"{own} (objects of {self.objects.file.path.name})"

    def entry(self, name: str) -> panoptic_json.PanopticImage:
        """The JSON's row of an image.

        Raises:
            ValueError: no such image.
        """
        self.check_name(name)
        return self.file.images[name]

    def image_path(self, name: str) -> Path:
        """File of an image."""
        self.entry(name)
        return self.image_folder / name

    def image_id(self, name: str) -> int | str:
        return self.entry(name).id

    def image(self, name: str) -> Image.Image:
        entry = self.entry(name)
        size = None if entry.width is None or entry.height is None else (entry.width, entry.height)
        return _read_sized(self.image_path(name), size)

    def truth(self, name: str) -> Truth:
        entry = self.entry(name)
        path = self.map_folder / entry.map
        ids, segments = panoptic_json.read_map(path, entry, self.classes)
        width, height = image_size(self.image_path(name))
        if ids.shape != (height, width):
            raise MaskSizeError(
                f"{path}: panoptic map must have the size of its image, {width} x {height}, "
                f"got {ids.shape[1]} x {ids.shape[0]}"
            )
        return Truth(height, width, segment_ids=ids, segments=segments, objects=self._objects(name, width, height))

    def training_names(self, kind: TruthKind) -> list[str]:
        if kind != "instance":
            return self.names
        if self.objects is not None:
            kept = frozenset(self.objects.training_names(kind))
            return [name for name in self.names if name in kept]
        things = {self.classes.categories[index].id for index in self.classes.things}
        return [
            name
            for name, entry in self.file.images.items()
            if any(row["category_id"] in things and not row.get("iscrowd", 0) for row in entry.segments)
        ]

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.objects is not None:
            yield from self.objects.problems()

    def _objects(self, name: str, width: int, height: int) -> list[ObjectTruth] | None:
        if self.objects is None:
            return None
        if name not in self.objects.known:
            return []
        found = self.objects.truth(name)
        if (found.width, found.height) != (width, height):
            raise MaskSizeError(
                f"{self.objects.file.path}: image {name} must have the size of its file, {width} x {height}, "
                f"got {found.width} x {found.height}"
            )
        ids = {index: category.id for index, category in enumerate(self.objects.classes.categories)}
        return [
            ObjectTruth(o.id, self.classes.index_of[ids[o.label]], o.outline, o.crowd, o.area)
            for o in found.objects or []
            if ids[o.label] in self.classes.index_of
        ]
