"""From any layout to COCO, YOLO, a label folder or COCO panoptic: images copied, truth written anew.

The new folder appears under its name when it is whole. What the target cannot say is counted and told.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from fssops import run_lengths
from fssops.data import layouts
from fssops.data.errors import DataError, DuplicateError
from fssops.data.few_shot_source import Progress
from fssops.data.layout import Layout
from fssops.data.source import ImageSource, PathLike
from fssops.labels import IGNORE
from fssops.polygons import polygons
from fssops.truth import ObjectTruth, Truth, TruthKind

NOT_SAID = {
    "crowds": "crowd regions, which the target cannot mark; left out",
    "empty": "objects without a pixel; left out",
    "parts": "objects of several parts, which are written as one polygon joined by lines of no width",
    "holes": "objects with holes, whose outlines go into each hole and back by lines of no width",
    "regions": "objects that are all of a class in an image, which the data do not tell apart",
    "stuff": "regions of classes that are not counted (stuff), which the target cannot hold; left out",
    "void": "images with pixels of no known class, which the target cannot mark; background there",
}
"""What a target cannot say, and what is done with it."""


def convert(
    root: PathLike,
    out: PathLike,
    to: str,
    *,
    layout: str = "auto",
    splits: Sequence[str] = (),
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, int]:
    """Write a data set in another layout.

    Args:
        root: folder of the data set.
        out: folder to make; refused where it exists.
        to: a key of :data:`TARGETS`.
        layout: of ``root``; ``auto`` tells it.
        splits: to convert; none are all, without ``trainval`` beside its parts.
        progress: is told (images done, images).
        **options: of the layout's reader.

    Returns:
        how often each of :data:`NOT_SAID` occurred.

    Raises:
        FileExistsError: there is something at ``out``.
        ValueError: no such target or layout.
        DataError: the data set has no truth that the target holds, its splits have other classes, two of its images
            would be one file, or a file of it is broken.
    """
    if to not in TARGETS:
        raise ValueError(f"convert: to must be {', '.join(TARGETS)}, got {to!r}")
    target, base = Path(out), Path(root)
    if target.exists():
        raise FileExistsError(f"{target}: out must be a new folder, got one that exists")
    if target.resolve().is_relative_to(base.resolve()):
        raise DataError(f"{target}: out must not lie in the folder that is read, got {base}")
    rules, kind = _reading(base, layout, to)
    if layout == "auto" and "instances" in rules.options(kind):
        options.setdefault("instances", "auto")  # objects as annotated, which may overlap, before those of segments
    there = rules.splits(base)
    if not splits and "train" in there:
        there = [split for split in there if split != "trainval"]  # its images are in train and val already
    sources = [rules.open(base, split, kind, **options) for split in splits or there]
    classes = [source.classes for source in sources if isinstance(source, ImageSource)]
    differing = next((number for number, one in enumerate(classes) if one != classes[0]), None)
    if differing is not None:
        wrong, first = sources[differing].split, sources[0].split
        raise DataError(f"{base}: all splits must have one list of classes, got others in {wrong} than in {first}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        whole = Path(temporary) / "whole"
        whole.mkdir()
        writer = TARGETS[to](whole)
        total, done = sum(len(source.names) for source in sources), 0
        for source in sources:
            assert isinstance(source, ImageSource)
            for name in source.names:
                writer.add(source, name)
                done += 1
                if progress is not None:
                    progress(done, total)
            writer.finish(source)
        whole.rename(target)
    return dict(writer.not_said)


def _reading(base: Path, layout: str, to: str) -> tuple[Layout, TruthKind]:
    """The layout of a folder, and for which truth it is opened: the first of the target's kinds that it has.

    Raises:
        DataError: it has none of them.
    """
    kinds = TARGETS[to].kinds
    if layout != "auto":
        rules = layouts.layout_of(layout)
        kind = next((kind for kind in kinds if kind in rules.offers), None)
        if kind is None:
            held = " or ".join(kinds)
            raise DataError(f"{base}: {to} holds {held} truth, and layout {layout} has {' and '.join(rules.offers)}")
        return rules, kind
    for kind in kinds[:-1]:
        with contextlib.suppress(DataError):
            return layouts.layout_of(layouts.recognise(base, kind)), kind
    return layouts.layout_of(layouts.recognise(base, kinds[-1])), kinds[-1]


class _Writer:
    """Writes one layout into a folder."""

    kinds: tuple[TruthKind, ...]
    """Truth that it is made of, the best first."""
    images: Callable[[str], str]
    """Folder of a split's images."""

    def __init__(self, root: Path) -> None:
        self.root, self.not_said = root, Counter[str]()
        self._stems: set[PurePosixPath] = set()

    def add(self, source: ImageSource, name: str) -> None:
        """Write an image and its truth."""
        raise NotImplementedError

    def finish(self, source: ImageSource) -> None:
        """Write what belongs to a split as a whole."""
        raise NotImplementedError

    def copy_image(self, source: ImageSource, name: str) -> str:
        """Copy an image's file, or write it where there is none; returns its name below the folder of its split."""
        file = source.image_file(name)
        suffix = ".png" if file is None else file.suffix
        # Readers of YOLO take the last folder called images for the one that labels stand in for.
        below = f"/{name}".rpartition("/images/")[2].removeprefix("/").removeprefix(f"{source.split}/")
        below = below if below.endswith(suffix) else below + suffix
        path = self.root / type(self).images(source.split) / below
        stem = PurePosixPath(source.split, below).with_suffix("")
        if stem in self._stems:
            raise DuplicateError(
                f"{file or name}: images must differ in name but for the suffix, got {stem.name} twice"
            )
        self._stems.add(stem)
        path.parent.mkdir(parents=True, exist_ok=True)
        if file is None:
            source.image(name).save(path)
        else:
            shutil.copyfile(file, path)
        return below

    def write(self, below: str, content: Any) -> None:
        """Write JSON."""
        path = self.root / below
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content) + "\n", encoding="utf-8")

    def classes(self, source: ImageSource) -> list[int]:
        """Indices of the classes that objects have: the countable ones; of label maps all but the background."""
        if source.offers("instance"):
            return list(source.classes.things)
        return [index for index in range(len(source.classes)) if index != source.classes.background]

    def objects(self, source: ImageSource, truth: Truth) -> list[tuple[ObjectTruth, np.ndarray]]:
        """Objects with their masks, without empty ones; of label maps one for each class but the background."""
        if not source.offers("instance"):
            labels = truth.semantic()
            self.not_said["void"] += bool((labels == IGNORE).any())
            present = [int(value) for value in np.unique(labels) if value not in (IGNORE, source.classes.background)]
            self.not_said["regions"] += len(present)
            return [(ObjectTruth(0, value, labels == value), labels == value) for value in present]
        if truth.segment_ids is not None:
            self.not_said["stuff"] += sum(one.label not in source.classes.things for one in truth.segments)
            self.not_said["void"] += bool((truth.segment_ids == 0).any())
        drawn = [(one, one.mask(truth.height, truth.width)) for one in truth.instances(source.classes.things)]
        self.not_said["empty"] += sum(not mask.any() for _, mask in drawn)
        return [(one, mask) for one, mask in drawn if mask.any()]


class _COCOTables(_Writer):
    """What COCO's two forms share: a JSON file a split, which lists images, their annotations and the classes."""

    images = staticmethod(lambda split: split)

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def list_image(self, truth: Truth, below: str) -> int:
        """Add an image to the split's; returns its number."""
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": below, "width": truth.width, "height": truth.height})
        return number

    def write_tables(self, name: str, categories: list[dict[str, Any]]) -> None:
        """Write the file of a split, and begin the next one."""
        content = {"images": self._images, "annotations": self.annotations, "categories": categories}
        self.write(f"annotations/{name}.json", content)
        self._images, self.annotations = [], []


class _COCO(_COCOTables):
    kinds = ("instance", "semantic")

    def add(self, source: ImageSource, name: str) -> None:
        truth, below = source.truth(name), self.copy_image(source, name)
        number = self.list_image(truth, below)
        for one, mask in self.objects(source, truth):
            # Polygons of the source stay as they are: drawn and traced they would gain points.
            if isinstance(one.outline, list):
                outline: Any = [np.asarray(polygon).flatten().tolist() for polygon in one.outline]
            else:
                outline = run_lengths.encode(mask)
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            left, top = int(columns[0]), int(rows[0])
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": number,
                    "category_id": source.classes.categories[one.label].id,
                    "segmentation": outline,
                    "area": int(mask.sum()) if one.area is None else one.area,
                    "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
                    "iscrowd": int(one.crowd),
                }
            )

    def finish(self, source: ImageSource) -> None:
        listed = [source.classes.categories[index] for index in self.classes(source)]
        rows = [{"id": category.id, "name": category.name} for category in listed]
        self.write_tables(f"instances_{source.split}", rows)


def _has_hole(mask: np.ndarray) -> bool:
    """Whether a mask goes round pixels that are not of it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    around = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    return bool(ndimage.label(~around)[1] > 1)


class _YOLO(_Writer):
    kinds = ("instance", "semantic")
    images = staticmethod(lambda split: f"images/{split}")

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._splits: list[str] = []

    def add(self, source: ImageSource, name: str) -> None:
        truth, below = source.truth(name), PurePosixPath(self.copy_image(source, name))
        lines, number_of = [], {index: number for number, index in enumerate(self.classes(source))}
        for one, mask in self.objects(source, truth):
            if one.crowd:
                self.not_said["crowds"] += 1
                continue
            parts = polygons(mask)
            self.not_said["parts"] += len(parts) > 1
            self.not_said["holes"] += _has_hole(mask)
            # Back over the first points of the earlier parts, so that each of the joining lines is drawn twice.
            back = [part[:1] for part in reversed(parts[:-1])]
            joined = np.concatenate([*(np.concatenate([part, part[:1]]) for part in parts), *back])
            values = (joined / (truth.width, truth.height)).flatten()
            lines.append(
                " ".join([str(number_of[one.label]), *(f"{value:.6f}".rstrip("0").rstrip(".") for value in values)])
            )
        path = self.root / "labels" / source.split / below.with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    def finish(self, source: ImageSource) -> None:
        self._splits.append(source.split)
        places: dict[str, list[str]] = {}
        for split in self._splits:
            places.setdefault(self._key(split), []).append(f"images/{split}")
        # JSON is YAML too. Without "path" places are below the file, wherever the folder is moved.
        lines = [f"{key}: {json.dumps(folders if folders[1:] else folders[0])}" for key, folders in places.items()]
        lines += ["names:"]
        names = [source.classes.names[index] for index in self.classes(source)]
        lines += [f"  {number}: {json.dumps(name)}" for number, name in enumerate(names)]
        (self.root / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")

    @staticmethod
    def _key(split: str) -> str:
        """What YOLO's tools call a split; a set without splits is for training."""
        keys = ("train", "val", "test")
        name = split.lower()
        return next((key for key in keys if name.startswith(key)), "train" if name in ("all", "default") else split)


class _LabelFolder(_Writer):
    kinds = ("semantic",)
    images = staticmethod(lambda split: f"images/{split}")

    def add(self, source: ImageSource, name: str) -> None:
        below, labels = PurePosixPath(self.copy_image(source, name)), source.truth(name).semantic()
        path = self.root / "labels" / source.split / below.with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels.astype(np.uint8)).save(path)

    def finish(self, source: ImageSource) -> None:
        if len(source.classes.names) > IGNORE:
            raise DataError(f"label_folder: there must be at most {IGNORE} classes, got {len(source.classes.names)}")
        rows = [
            {"id": index, "name": category.name, "color": list(category.colour)}
            for index, category in enumerate(source.classes.categories)
        ]
        self.write("classes.json", {"classes": rows})


class _Panoptic(_COCOTables):
    kinds = ("panoptic",)

    def add(self, source: ImageSource, name: str) -> None:
        truth, below = source.truth(name), self.copy_image(source, name)
        assert truth.segment_ids is not None
        number, file = self.list_image(truth, below), str(PurePosixPath(below).with_suffix(".png"))
        ids = truth.segment_ids.astype(np.int64)
        path = self.root / "annotations" / f"panoptic_{source.split}" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)).save(path)
        segments = [
            {
                "id": segment.id,
                "category_id": source.classes.categories[segment.label].id,
                "iscrowd": int(segment.crowd),
                "area": int((ids == segment.id).sum()),
            }
            for segment in truth.segments
        ]
        self.annotations.append({"image_id": number, "file_name": file, "segments_info": segments})

    def finish(self, source: ImageSource) -> None:
        rows = [
            {
                "id": category.id,
                "name": category.name,
                "isthing": int(category.is_thing),
                "color": list(category.colour),
            }
            for category in source.classes.categories
        ]
        self.write_tables(f"panoptic_{source.split}", rows)


TARGETS: dict[str, type[_Writer]] = {
    "coco": _COCO,
    "yolo": _YOLO,
    "label_folder": _LabelFolder,
    "coco_panoptic": _Panoptic,
}
"""Layouts that can be written."""
