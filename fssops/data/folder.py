"""A folder of one's own images and masks.

One sub-folder a class (any of these forms, also mixed):

    ROOT/CLASS/images/NAME.jpg    ROOT/CLASS/masks/NAME.png
    ROOT/CLASS/NAME.jpg           ROOT/CLASS/NAME.png
    ROOT/CLASS/NAME.jpg           ROOT/CLASS/NAME_mask.png

Such masks are binary. 0 is background; where some mask of the data set holds a 1, 1 is the object and 255 is ignored
everywhere, else 255 is the object everywhere. Any other value is an error.

Or one label map an image, with classes.json: ["background", "cat", ...] by position, {"1": "cat", ...}, or
{"classes": [{"id": 1, "name": "cat"}, ...]}. Where id 0 is a class of its own (not called background), every class is
numbered one higher here, since 0 means background everywhere in fssops:

    ROOT/images/NAME.jpg          ROOT/labels/NAME.png (or masks/)        ROOT/classes.json
    ROOT/images/SPLIT/NAME.jpg    ROOT/labels/SPLIT/NAME.png
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from fssops.data.errors import AnnotationError, DataError, DuplicateError
from fssops.data.images import SUFFIXES, image_size, read_mask
from fssops.data.sources import PairedFilesSource, keep_classes
from fssops.structures import IGNORE


def pictures(folder: Path) -> list[Path]:
    """Picture files of a folder by suffix, sorted by name; hidden files are left out."""
    return sorted(
        p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


def pair_files(folder: Path) -> list[tuple[Path, Path]]:
    """Pair the images of a class folder with their masks; the forms are listed in the module.

    Raises:
        DataError: a folder of images without a folder of masks.
        AnnotationError: two images of one name.
    """
    pairs: list[tuple[Path, Path]] = []
    if (folder / "images").is_dir():
        masks_in = next((folder / n for n in ("masks", "labels") if (folder / n).is_dir()), folder)
        if masks_in == folder:
            raise DataError(f"{folder}: folder must hold masks (or labels) beside images, got neither")
        images, masks = pictures(folder / "images"), {p.stem: p for p in pictures(masks_in)}
    else:
        files, masks_in = pictures(folder), folder
        masks = {p.stem.removesuffix("_mask"): p for p in files if p.stem.endswith("_mask")}
        rest = [p for p in files if not p.stem.endswith("_mask")]
        stems = Counter(p.stem for p in rest)
        for file in rest:
            # Two files of one name: the PNG is the mask.
            if stems[file.stem] > 1 and file.suffix.lower() == ".png" and file.stem not in masks:
                masks[file.stem] = file
        taken = set(masks.values())
        images = [p for p in rest if p not in taken]
    seen: dict[str, Path] = {}
    for image in images:
        if image.stem in seen:
            raise DuplicateError(f"{image}: images of a class must differ in name, got also {seen[image.stem].name}")
        seen[image.stem] = image
        mask = masks.get(image.stem) or masks.get(f"{image.stem}_mask")
        # Where none is found, the file that should be there: reading it says so, and a check goes on to the next image.
        pairs.append((image, mask or masks_in / f"{image.stem}{'' if masks_in != folder else '_mask'}.png"))
    return pairs


class FolderSource(PairedFilesSource):
    """A plain folder of images and masks; layouts in the module.

    Args:
        root: the folder.
        split: for label maps: sub-folder of images and labels, or ``all`` where there is none; None takes ``train``
            where that is a sub-folder and no image lies beside it. Class folders have no splits: always ``all``.
        unknown: for label maps: ids outside classes.json are an ``error`` or mapped to 255 (``ignore``).

    Raises:
        FileNotFoundError: no such folder.
        DataError: nothing in it fits a layout, or images and masks do not pair.
    """

    format = "folder"

    def __init__(
        self, root: str | os.PathLike[str], split: str | None = None, *, unknown: Literal["error", "ignore"] = "error"
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: root must be a folder, got no such folder")
        if unknown not in ("error", "ignore"):
            raise ValueError(f"FolderSource: unknown must be error or ignore, got {unknown!r}")
        self.unknown = unknown
        self.single_class = not (self.root / "images").is_dir()
        self._object_is_255: bool | None = None
        self._shift = 0
        self._class_of: dict[str, int] = {}
        if self.single_class:
            super().__init__("all", *self._read_class_folders())
        else:
            images = self.root / "images"
            if split is None:
                split = "train" if (images / "train").is_dir() and not pictures(images) else "all"
            super().__init__(split, *self._read_label_maps(images, split))

    def _read_class_folders(self) -> tuple[dict[int, str], dict[str, tuple[Path, Path]]]:
        classes: dict[int, str] = {}
        files: dict[str, tuple[Path, Path]] = {}
        for folder in sorted(p for p in self.root.iterdir() if p.is_dir() and not p.name.startswith(".")):
            pairs = pair_files(folder)
            if not pairs:
                continue
            number = len(classes) + 1
            classes[number] = folder.name
            for image, mask in pairs:
                files[f"{folder.name}/{image.name}"] = (image, mask)
                self._class_of[f"{folder.name}/{image.name}"] = number
        if not classes:
            raise DataError(
                f"{self.root}: root must hold one sub-folder a class with images and masks, or images/ and labels/, "
                "got neither"
            )
        if len(classes) >= IGNORE:
            raise DataError(f"{self.root}: there must be at most {IGNORE - 1} class folders, got {len(classes)}")
        return classes, files

    def _read_label_maps(self, images: Path, split: str) -> tuple[dict[int, str], dict[str, tuple[Path, Path]]]:
        labels = next((self.root / n for n in ("labels", "masks") if (self.root / n).is_dir()), None)
        if labels is None:
            raise FileNotFoundError(f"{self.root}: root must hold labels (or masks) beside images, got neither")
        if (images / split).is_dir():
            images, labels = images / split, labels / split
        elif split != "all" or not pictures(images):
            known = ", ".join(sorted(p.name for p in images.iterdir() if p.is_dir())) or "none"
            raise FileNotFoundError(
                f"{images / split}: split must be a folder of images, got {split!r} (there: {known})"
            )
        if not labels.is_dir():
            raise FileNotFoundError(f"{labels}: label folder must exist, got no such folder")
        classes = read_class_names(self.root / "classes.json")
        masks = {p.stem: p for p in pictures(labels)}
        files: dict[str, tuple[Path, Path]] = {}
        for image in pictures(images):
            if image.stem in files:
                raise DuplicateError(f"{image}: images must differ in name, got also {files[image.stem][0].name}")
            files[image.stem] = (image, masks.get(image.stem, labels / f"{image.stem}.png"))
        if not files:
            raise DataError(f"{images}: there must be at least one image, got none")
        self._shift = int(0 in classes)
        return {number + self._shift: name for number, name in classes.items()}, files

    def label_map(self, name: str, class_ids: Sequence[int] | None = None) -> np.ndarray:
        image, mask = self.paths(name)
        if not self.single_class:
            stored = [number - self._shift for number in self.classes]
            allowed = stored if self._shift else [0, *stored]
            values = read_mask(mask, size=image_size(image), allowed=allowed, unknown=self.unknown)
            if self._shift:
                values = np.where(values == IGNORE, values, values + np.uint8(1))
            return keep_classes(values, class_ids)
        values = read_mask(mask, size=image_size(image), allowed=(0, 1, 255))
        inside = values == (IGNORE if self._object_is_white() else 1)
        label = np.where(inside, np.uint8(self._class_of[name]), np.uint8(0))
        if not self._object_is_white():
            label[values == IGNORE] = IGNORE
        return keep_classes(label, class_ids)

    def _object_is_white(self) -> bool:
        """Whether 255 marks the object: when no mask of the data set holds a 1."""
        if self._object_is_255 is None:
            self._object_is_255 = not any(_holds_a_one(mask) for _, mask in self._files.values())
        return self._object_is_255


def _holds_a_one(mask: Path) -> bool:
    try:
        return bool((read_mask(mask) == 1).any())
    except (DataError, OSError):
        return False  # said where this mask itself is asked for: others need not fail with it


def read_class_names(file: Path) -> dict[int, str]:
    """Read classes.json in one of the forms that the module lists; an id 0 that is called background is left out.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: not JSON of these forms, an id given twice or outside 0..253.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: class names must be listed there for label maps, got no such file") from None
    except ValueError as error:
        raise AnnotationError(f"{file}: class list must be complete JSON, got {error}") from error
    if isinstance(content, dict):
        content = content.get("classes", content.get("names", content))
    try:
        if isinstance(content, list):
            pairs = [(e["id"], e["name"]) if isinstance(e, dict) else (i, e) for i, e in enumerate(content)]
        else:
            pairs = [(int(key), name) for key, name in content.items()]
        classes = {int(number): str(name) for number, name in pairs}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise AnnotationError(f"{file}: class list must map ids to names, got {str(content)[:80]}") from None
    if len(classes) != len(pairs):
        raise DuplicateError(f"{file}: class ids must be unique, got {sorted(number for number, _ in pairs)}")
    if not classes or any(not 0 <= number < IGNORE - 1 for number in classes):
        raise AnnotationError(f"{file}: class ids must be from 0 to {IGNORE - 2}, got {sorted(classes)}")
    if classes.get(0, "").lower() in ("background", "bg", "__background__"):
        del classes[0]
    return classes
