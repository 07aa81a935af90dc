"""FSS-1000: a folder a class, images and binary masks beside each other.

    ROOT/CLASS/1.jpg .. 10.jpg    ROOT/CLASS/1.png .. 10.png

The benchmark splits classes, not images (520 / 240 / 240). The lists are files of class names, one a line
(``trn.txt``, ``val.txt``, ``test.txt`` as HSNet publishes them, or ``fss_test_set.txt``), looked for beside the
classes under the split's name or given with ``class_list``.
"""

from __future__ import annotations

from pathlib import Path

from fssops.data.errors import AnnotationError, DataError, DuplicateError, MaskValueError
from fssops.data.images import image_size, read_grey
from fssops.data.layout import Layout, few_shot_view, ids_as_numbers
from fssops.data.layouts.folder import ClassFolders, class_folders, numbered_as_fss1000
from fssops.data.source import PathLike
from fssops.data.text_files import read_lines
from fssops.truth import Classes, ObjectTruth, Truth

FIRST_ID = 1001
"""Class ids are 1001.. in alphabetical order of all class folders, so that none of the thousand is 255."""

_LIST_NAMES = {"train": ("train", "trn"), "trn": ("trn", "train"), "val": ("val",), "test": ("test", "fss_test_set")}


class FSS1000Source(ClassFolders):
    """FSS-1000 (Li et al., "FSS-1000: A 1000-Class Dataset for Few-Shot Segmentation", CVPR 2020).

    Mask values from 128 on are object (HSNet), since outlines are smoothed.

    Args:
        root: folder of the class folders.
        split: ``train``, ``val`` or ``test`` with a list of that name in ``root``; ``all`` for every class.
        class_list: file of class names, one a line, instead of the one that ``split`` names.

    Raises:
        FileNotFoundError: folder or list missing.
        DataError: no class folder, or a listed class without folder.
    """

    def __init__(self, root: PathLike, split: str = "all", *, class_list: PathLike | None = None) -> None:
        base = Path(root)
        folders = class_folders(base)
        if not folders:
            raise DataError(f"{base}: root must hold one folder a class (FSS-1000 layout), got none")
        ids = {folder.name: FIRST_ID + i for i, folder in enumerate(folders)}
        names = list(ids)
        if class_list is not None or split != "all":
            names = _read_list(Path(class_list) if class_list else _find_list(base, split), ids)
        classes = Classes.from_names(names, ids=[ids[name] for name in names])
        super().__init__(split, classes, {ids[name]: base / name for name in names})

    def truth(self, name: str) -> Truth:
        """One region: label maps could not hold a thousand classes."""
        image, file = self.paths(name)
        grey = read_grey(file, size=image_size(image))
        if grey.max(initial=0) == 1:
            raise MaskValueError(
                f"{file}: mask must mark its object by values from 128 to 255 (FSS-1000), got 0 and 1; the format "
                "folder reads such masks"
            )
        return Truth(grey.shape[0], grey.shape[1], objects=[ObjectTruth(1, self.label_of(name), grey >= 128)])


def _find_list(root: Path, split: str) -> Path:
    tried = [root / f"{name}.txt" for name in _LIST_NAMES.get(split, (split,))]
    for file in tried:
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"{tried[0]}: split {split!r} must have a list of class names there or in class_list "
        "(use split all for every class), got no such file"
    )


def _read_list(file: Path, ids: dict[str, int]) -> list[str]:
    names = [line.strip() for line in read_lines(file, "class list") if line.strip()]
    missing = [name for name in names if name not in ids]
    if missing or not names:
        got = f"{len(missing)} others, e.g. {missing[0]!r}" if missing else "an empty list"
        raise AnnotationError(f"{file}: class list must name folders of {len(ids)} classes, got {got}")
    if len(set(names)) != len(names):
        raise DuplicateError(f"{file}: every class must be listed once, got {len(names) - len(set(names))} repeats")
    return names


def _recognise(root: Path) -> str:
    if any(map(numbered_as_fss1000, class_folders(root))):
        return ""
    return "no sub-folder holds 1.jpg and 1.png"


def _splits(root: Path) -> list[str]:
    return ["all"]


LAYOUT = Layout(
    name="fss1000",
    files="CLASS/1.jpg CLASS/1.png ..., and lists of classes trn.txt, val.txt, test.txt",
    readers={"few-shot": few_shot_view(FSS1000Source, ids_as_numbers)},
    recognise=_recognise,
    splits=_splits,
)
