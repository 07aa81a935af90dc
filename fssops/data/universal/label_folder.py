"""Images and label maps in two folders: one's own data, and CamVid.

    ROOT/images/NAME.jpg          ROOT/labels/NAME.png (or masks/, annotations/)     ROOT/classes.json
    ROOT/images/SPLIT/NAME.jpg    ROOT/labels/SPLIT/NAME.png

Images may be in sub-folders of SPLIT, labels are then in the same ones. classes.json is a list of names, or
``{"classes": [{"id": 0, "name": "road", "color": [128, 64, 128]}, ...]}``; ids are the values in the label maps, 0 to
254; 255 is always ignored.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from fssops.data.errors import AnnotationError, DataError, DuplicateError
from fssops.data.images import SUFFIXES, image_size, read_image, read_mask
from fssops.data.universal.source import UniversalSource
from fssops.structures import IGNORE
from fssops.truth import Classes, Truth

LABEL_FOLDERS = ("labels", "masks", "annotations")


def pictures_below(folder: Path) -> list[Path]:
    """Picture files of a folder and its sub-folders by suffix, sorted; what is hidden is left out."""

    def hidden(path: Path) -> bool:
        return any(part.startswith(".") for part in path.relative_to(folder).parts)

    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not hidden(p))


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are left out, and none are in what is no folder."""
    return sorted(p.name for p in folder.glob("*") if p.is_dir() and not p.name.startswith("."))


def read_classes(file: Path) -> Classes:
    """Read classes.json; the forms are listed in the module.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: not JSON of these forms.
    """
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: class names must be listed there, got no such file") from None
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{file}: class list must be complete JSON, got {error}") from error
    if isinstance(content, dict):
        content = content.get("classes", content.get("names", content))
    if isinstance(content, dict):
        content = [{"id": int(k) if str(k).isdigit() else k, "name": name} for k, name in content.items()]
    if not isinstance(content, list):
        raise AnnotationError(f"{file}: class list must be a list or map ids to names, got {str(content)[:80]}")
    rows = [row if isinstance(row, dict) else {"id": i, "name": row} for i, row in enumerate(content)]
    return Classes.from_rows(rows, str(file), things=False)


class LabelMapSource(UniversalSource):
    """Pairs of image and label map; the layouts below find them.

    Args:
        split: of the data set.
        classes: its classes.
        files: name -> (image file, label file).
        remap: value in the files -> class index; other values are errors. None: by the ids of ``classes``.
        unknown: values outside ``remap`` are an ``error`` or mapped to 255 (``ignore``).
    """

    format = "label_folder"

    def __init__(
        self,
        split: str,
        classes: Classes,
        files: dict[str, tuple[Path, Path]],
        *,
        remap: dict[int, int] | None = None,
        unknown: Literal["error", "ignore"] = "error",
    ) -> None:
        super().__init__("semantic", split, classes, list(files))
        if unknown not in ("error", "ignore"):
            raise ValueError(f"{self.format}: unknown must be error or ignore, got {unknown!r}")
        self._files, self._unknown = files, unknown
        rule = dict(classes.index_of) if remap is None else remap
        self._allowed = sorted(rule)
        self._table = np.full(256, IGNORE, dtype=np.uint8)
        for value, index in rule.items():
            self._table[value] = index

    def paths(self, name: str) -> tuple[Path, Path]:
        """Image file and label file.

        Raises:
            ValueError: no such image.
        """
        self.check_name(name)
        return self._files[name]

    def image(self, name: str) -> Image.Image:
        return read_image(self.paths(name)[0])

    def truth(self, name: str) -> Truth:
        image, label = self.paths(name)
        values = read_mask(label, size=image_size(image), allowed=self._allowed, unknown=self._unknown)
        return Truth(values.shape[0], values.shape[1], label_map=self._table[values])


def pairs(images: Path, labels: Path) -> dict[str, tuple[Path, Path]]:
    """Pair images with labels of the same relative path, whatever their suffixes."""
    if not images.is_dir():
        raise FileNotFoundError(f"{images}: images must be a folder, got no such folder")
    if not labels.is_dir():
        raise FileNotFoundError(f"{labels}: labels must be a folder, got no such folder")
    stored = {str(p.relative_to(labels).with_suffix("")): p for p in pictures_below(labels)}
    found: dict[str, tuple[Path, Path]] = {}
    for path in pictures_below(images):
        name = str(path.relative_to(images).with_suffix(""))
        if name in found:
            raise DuplicateError(f"{path}: images must differ in name, got also {found[name][0].name}")
        # Where there is none, the file that should be there: reading it says so.
        found[name] = (path, stored.get(name, labels / f"{name}.png"))
    if not found:
        raise DataError(f"{images}: there must be at least one image, got none")
    return found


def _label_folder(root: Path) -> Path:
    found = next((root / name for name in LABEL_FOLDERS if (root / name).is_dir()), None)
    if found is None:
        raise FileNotFoundError(f"{root}: root must hold {' or '.join(LABEL_FOLDERS)} beside images, got none")
    return found


class LabelFolderSource(LabelMapSource):
    """One's own images and label maps; layout in the module.

    Args:
        root: the folder.
        split: sub-folder of images and labels. Where there is none, ``train`` and ``all`` are the whole set, and other
            splits are refused: scores on them would be scores on what was trained on.
        classes: class file, instead of ROOT/classes.json.
        unknown: see :class:`LabelMapSource`.

    Raises:
        FileNotFoundError: a folder or the class file is missing.
        DataError: no image, or two of one name.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        *,
        classes: str | os.PathLike[str] | None = None,
        unknown: Literal["error", "ignore"] = "error",
    ) -> None:
        base = Path(root)
        if not base.is_dir():
            raise FileNotFoundError(f"{base}: root must be a folder, got no such folder")
        images, labels = base / "images", _label_folder(base)
        if (images / split).is_dir():
            images, labels = images / split, labels / split
        elif split != "all" and (split != "train" or folders_in(images)):
            known = ", ".join(folders_in(images)) or "none; split all is the whole set"
            raise FileNotFoundError(
                f"{images / split}: split must be a folder of images, got {split!r} (there: {known})"
            )
        file = Path(classes) if classes is not None else base / "classes.json"
        listed = read_classes(file)
        wrong = [category.id for category in listed.categories if not 0 <= category.id < IGNORE]
        if wrong:
            raise AnnotationError(f"{file}: class ids must be from 0 to {IGNORE - 1}, got {wrong[0]}")
        super().__init__(split, listed, pairs(images, labels), unknown=unknown)


CAMVID = [
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree"),
    *("SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"),
]
_CAMVID_COLOURS = [(128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0)]
_CAMVID_COLOURS += [(192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)]


class CamVidSource(LabelMapSource):
    """CamVid with 11 classes, in the layout of this module or of the SegNet tutorial (train/, trainannot/; 11 = void).

    Args:
        root: the folder.
        split: train, val or test.
    """

    format = "camvid"

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        base = Path(root)
        if (base / f"{split}annot").is_dir():
            files = pairs(base / split, base / f"{split}annot")
        else:
            files = pairs(base / "images" / split, base / "labels" / split)
        remap = {**{index: index for index in range(11)}, 11: IGNORE}
        super().__init__(split, Classes.from_names(CAMVID, colours=_CAMVID_COLOURS), files, remap=remap)
