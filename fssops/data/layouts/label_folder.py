"""Images and label maps in folders of their own.

    ROOT/images/NAME.jpg          ROOT/labels/NAME.png (or masks/, annotations/)     ROOT/classes.json
    ROOT/images/SPLIT/NAME.jpg    ROOT/labels/SPLIT/NAME.png
    ROOT/SPLIT/images/NAME.jpg    ROOT/SPLIT/labels/NAME.png

Images may lie in sub-folders, labels then lie in the same ones. The forms of classes.json are those of
:func:`fssops.data.class_names.read_classes`; ids are the values in the label maps, 0 to 254; 255 is always ignored.

Few-shot classes are numbered by these ids. Where 0 is a class of its own (not called background), every class is
numbered one higher, since 0 means background there.
"""

from __future__ import annotations

from pathlib import Path

from fssops.data.class_names import read_classes
from fssops.data.errors import AnnotationError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.label_maps import LabelMapSource, OnUnknown, paired
from fssops.data.layout import Layout
from fssops.data.listing import folders_in, pictures_in
from fssops.data.source import PathLike
from fssops.labels import IGNORE
from fssops.truth import Category, Classes

LABELS = ("labels", "masks", "annotations")

_SPLIT_NAMES = frozenset({"train", "training", "trn", "val", "valid", "validation", "test", "testing", "dev", "all"})


def labels_beside(folder: Path) -> Path | None:
    """The folder of label maps beside ``folder/images``; None where either is missing."""
    if not (folder / "images").is_dir():
        return None
    for name in LABELS:
        # COCO keeps JSON in a folder of the same name.
        if (folder / name).is_dir() and not (name == "annotations" and any((folder / name).glob("*_*.json"))):
            return folder / name
    return None


def split_folders(root: Path) -> list[str]:
    """Folders SPLIT that hold images and labels; none where they are classes, or images lie in ROOT/images."""
    if (root / "images").is_dir():
        return []
    folders = [name for name in folders_in(root) if labels_beside(root / name)]
    named = (root / "classes.json").is_file() or all(name.lower() in _SPLIT_NAMES for name in folders)
    return folders if named else []


def recognise(root: Path) -> str:
    """Why a folder is none of label maps; "" when it is one."""
    if (root / "images" / "training").is_dir() and not (root / "classes.json").is_file():
        return "images/training without classes.json are ADE20K's"
    if labels_beside(root) or split_folders(root):
        return ""
    return f"no images beside {', '.join(LABELS[:-1])} or {LABELS[-1]} with label maps"


def splits(root: Path) -> list[str]:
    """Sub-folders of images, or ``all`` where there is none or images lie beside them."""
    images = root / "images"
    if not images.is_dir():
        return split_folders(root) or ["all"]
    return ["all"] if pictures_in(images, below=False).files else folders_in(images) or ["all"]


def _places(root: Path, split: str) -> tuple[Path, Path]:
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

    Raises:
        FileNotFoundError: a folder or the class file is missing.
        DataError: no image, or two of one name.
    """

    def __init__(
        self,
        root: PathLike,
        split: str = "train",
        *,
        classes: PathLike | None = None,
        unknown: OnUnknown = "error",
        background: bool = False,
    ) -> None:
        base = Path(root)
        images, labels = _places(base, split)
        file = Path(classes) if classes is not None else base / "classes.json"
        listed = read_classes(file)
        if background and 0 not in listed.index_of:
            listed = Classes((Category(0, "background", (0, 0, 0)), *listed.categories))
        wrong = [number for number in listed.index_of if not 0 <= number < IGNORE]
        if wrong:
            raise AnnotationError(f"{file}: class ids must be from 0 to {IGNORE - 1}, got {wrong[0]}")
        super().__init__(split, listed, paired(images, labels), unknown=unknown)


def few_shot(
    root: PathLike, split: str | None = None, *, classes: PathLike | None = None, unknown: OnUnknown = "error"
) -> FewShotSource:
    """Open label maps as numbered classes.

    Args:
        root: the folder.
        split: as for :class:`LabelFolderSource`; None takes ``train`` where that is one of the splits, else ``all``.
        classes: class file, instead of ROOT/classes.json.
        unknown: values outside the class list are an ``error`` or mapped to 255 (``ignore``).
    """
    if split is None:
        split = "train" if "train" in splits(Path(root)) else "all"
    source = LabelFolderSource(root, split, classes=classes, unknown=unknown, background=True)
    shift = 0 if source.classes.background is not None else 1
    return FewShotSource(source, [category.id + shift for category in source.classes.categories])


LAYOUT = Layout(
    name="label_folder",
    files="images/ labels/ (or masks/, annotations/) classes.json; or images/SPLIT/ ...; or SPLIT/images/ ...",
    readers={"semantic": LabelFolderSource, "few-shot": few_shot},
    recognise=recognise,
    splits=splits,
)
