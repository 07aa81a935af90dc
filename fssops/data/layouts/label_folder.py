"""Images and label maps in folders of their own.

    ROOT/images/NAME.jpg          ROOT/labels/NAME.png (or masks/, annotations/)     ROOT/classes.json
    ROOT/images/SPLIT/NAME.jpg    ROOT/labels/SPLIT/NAME.png
    ROOT/SPLIT/images/NAME.jpg    ROOT/SPLIT/labels/NAME.png

Images may lie in sub-folders, labels then lie in the same ones. The forms of classes.json are those of
:func:`fssops.data.class_names.read_classes`; ids are the values in the label maps, 0 to 254; 255 is ignored, but for
splits of 0 and 255 alone, see :mod:`fssops.data.object_masks`.

Few-shot classes are numbered by these ids. Where 0 is a class of its own (not called background), every class is
numbered one higher, since 0 means background there.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from fssops.data.class_names import read_classes
from fssops.data.colour_maps import FILES, is_coloured, names_colours
from fssops.data.errors import AnnotationError, DataError, DataWarning, MaskValueError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.images import read_mask
from fssops.data.label_maps import LabelMapSource, OnUnknown, Pairs, paired
from fssops.data.layout import Layout
from fssops.data.listing import folders_in, pictures_in
from fssops.data.object_masks import white_is_object
from fssops.data.source import PathLike
from fssops.labels import IGNORE
from fssops.truth import Category, Classes

LABELS = ("labels", "masks", "annotations")

SPLIT_NAMES = frozenset({"train", "training", "trn", "val", "valid", "validation", "test", "testing", "dev", "all"})


def labels_beside(folder: Path) -> Path | None:
    """The folder of label maps beside ``folder/images``; None where either is missing."""
    if not (folder / "images").is_dir():
        return None
    for name in LABELS:
        place = folder / name
        # COCO keeps JSON in a folder of the same name, and YOLO text.
        coco = name == "annotations" and any(place.glob("*_*.json"))
        yolo = name == "labels" and any(place.glob("**/*.txt")) and not pictures_in(place).files
        if place.is_dir() and not coco and not yolo:
            return place
    return None


def first_labels(root: Path, most: int = 8) -> list[Path]:
    """The first pictures of a folder's labels, by which it is told how they are to be read; none where it has none."""
    folders = [labels_beside(folder) for folder in (root, *(root / name for name in folders_in(root)))]
    listed = (path for folder in folders if folder for path in pictures_in(folder).files)
    return list(itertools.islice(listed, most))


def are_binary(root: Path) -> bool:
    """Whether the first labels are of 0 and 255 alone, and no file says which classes there are."""
    if (root / "classes.json").is_file() or not (labels_beside(root) or split_folders(root)):
        return False
    labels = first_labels(root)
    return white_is_object(_readable(Pairs({file.name: (file, file) for file in labels}))) if labels else False


def are_coloured(root: Path) -> bool:
    """Whether the first labels hold colours, or a file of colours stands in the place of classes.json."""
    labels, listed = first_labels(root), [root / name for name in FILES if (root / name).is_file()]
    if not labels or any(map(is_coloured, labels)):
        return bool(labels)
    return not (root / "classes.json").is_file() and any(map(names_colours, listed))


def split_folders(root: Path) -> list[str]:
    """Folders SPLIT that hold images and labels; none where they are classes, or images lie in ROOT/images."""
    if (root / "images").is_dir():
        return []
    folders = [name for name in folders_in(root) if labels_beside(root / name)]
    named = (root / "classes.json").is_file() or all(name.lower() in SPLIT_NAMES for name in folders)
    return folders if named else []


def recognise(root: Path) -> str:
    """Why a folder is none of label maps; "" when it is one."""
    if (root / "images" / "training").is_dir() and not (root / "classes.json").is_file():
        return "images/training without classes.json are ADE20K's"
    if labels_beside(root) or split_folders(root):
        if are_binary(root):
            return "masks hold 0 and 255 alone, and no classes.json says what they are"
        if are_coloured(root):
            return "label maps hold colours"
        return ""
    return f"no images beside {', '.join(LABELS[:-1])} or {LABELS[-1]} with label maps"


def splits(root: Path) -> list[str]:
    """Sub-folders of images, or ``all`` where there is none or images lie beside them."""
    images = root / "images"
    if not images.is_dir():
        return split_folders(root) or ["all"]
    return ["all"] if pictures_in(images, below=False).files else folders_in(images) or ["all"]


def places(root: Path, split: str) -> tuple[Path, Path]:
    """Folders of the images and labels of a split."""
    listed = split_folders(root)
    if listed:
        folder = root / split
        labels = labels_beside(folder)
        if labels is None:
            raise FileNotFoundError(
                f"{folder}: split must hold images and labels, got {split!r} (there: {', '.join(listed)})"
            )
        return folder / "images", labels
    images, beside = root / "images", labels_beside(root)
    if beside is None:
        raise FileNotFoundError(f"{root}: root must hold {' or '.join(LABELS)} beside images, got none")
    if (images / split).is_dir():
        return images / split, beside / split
    listed = splits(root)
    if split != "all" and (split != "train" or listed != ["all"]):
        there = "none; split all is the whole set" if listed == ["all"] else ", ".join(listed)
        raise FileNotFoundError(f"{images / split}: split must be a folder of images, got {split!r} (there: {there})")
    return images, beside


class LabelFolderSource(LabelMapSource):
    """One's own images and label maps; layout in the module.

    Args:
        root: the folder.
        split: sub-folder of images and labels. Where there is none, ``train`` and ``all`` are the whole set, and other
            splits are refused: scores on them would be scores on what was trained on.
        classes: class file, instead of ROOT/classes.json.
        unknown: values outside the class list are an ``error`` or mapped to 255 (``ignore``).
        background: let 0 be background where the list has no class 0.
        ignore: 255 says that it is ignored although label maps hold nothing else beside 0.

    Raises:
        FileNotFoundError: a folder or the class file is missing.
        DataError: no image, or two of one name; or 0 and 255 alone stand for several classes.
    """

    def __init__(
        self,
        root: PathLike,
        split: str = "train",
        *,
        classes: PathLike | None = None,
        unknown: OnUnknown = "error",
        background: bool = False,
        ignore: int | None = None,
    ) -> None:
        if ignore not in (None, IGNORE):
            raise ValueError(f"LabelFolderSource: ignore must be {IGNORE} or left out, got {ignore!r}")
        base = Path(root)
        images, labels = places(base, split)
        file = Path(classes) if classes is not None else base / "classes.json"
        listed = read_classes(file)
        if background and 0 not in listed.index_of:
            listed = Classes((Category(0, "background", (0, 0, 0)), *listed.categories))
        wrong = [number for number in listed.index_of if not 0 <= number < IGNORE]
        if wrong:
            raise AnnotationError(f"{file}: class ids must be from 0 to {IGNORE - 1}, got {wrong[0]}")
        pairs, remap = paired(images, labels), None
        self._read_as = ""
        if ignore is None and 0 in listed.index_of and white_is_object(_readable(pairs)):
            others = [index for number, index in listed.index_of.items() if number]
            told = f"{labels}: label maps must show a class of {file.name} beside 0, got 0 and {IGNORE} alone"
            if len(others) != 1:
                raise MaskValueError(f"{told}; say ignore={IGNORE} if nothing but background is meant")
            remap = {0: listed.index_of[0], IGNORE: others[0]}
            self._read_as = (
                f"{told}: {IGNORE} is read as {listed.names[others[0]]!r}; say ignore={IGNORE} if it is void"
            )
            warnings.warn(self._read_as, DataWarning, 2)
        super().__init__(split, listed, pairs, remap=remap, unknown=unknown)

    def identity(self) -> Mapping[str, object]:
        return {"white": "object"} if self._read_as else {}

    def problems(self) -> Iterator[tuple[str, str]]:
        if self._read_as:
            yield "read_as", self._read_as


def _readable(pairs: Pairs) -> Iterator[np.ndarray]:
    """The label maps, without those that cannot be read: that is said where they are asked for."""
    for _, label in pairs.files.values():
        with contextlib.suppress(DataError, OSError):
            yield read_mask(label)


def few_shot(
    root: PathLike,
    split: str | None = None,
    *,
    classes: PathLike | None = None,
    unknown: OnUnknown = "error",
    ignore: int | None = None,
) -> FewShotSource:
    """Open label maps as numbered classes.

    Args:
        root: the folder.
        split: as for :class:`LabelFolderSource`; None takes ``train`` where that is one of the splits, else ``all``.
        classes: class file, instead of ROOT/classes.json.
        unknown: values outside the class list are an ``error`` or mapped to 255 (``ignore``).
        ignore: as for :class:`LabelFolderSource`.
    """
    if split is None:
        split = "train" if "train" in splits(Path(root)) else "all"
    source = LabelFolderSource(root, split, classes=classes, unknown=unknown, background=True, ignore=ignore)
    shift = 0 if source.classes.background is not None else 1
    return FewShotSource(source, [category.id + shift for category in source.classes.categories])


LAYOUT = Layout(
    name="label_folder",
    files="images/ labels/ (or masks/, annotations/) classes.json; or images/SPLIT/ ...; or SPLIT/images/ ...",
    readers={"semantic": LabelFolderSource, "few-shot": few_shot},
    recognise=recognise,
    splits=splits,
    family="folder",
)
