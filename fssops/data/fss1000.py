"""FSS-1000 layout: a folder a class, images and binary masks beside each other.

    ROOT/CLASS/1.jpg .. 10.jpg    ROOT/CLASS/1.png .. 10.png

The benchmark splits classes, not images (520 / 240 / 240). The lists are files of class names, one a line
(``trn.txt``, ``val.txt``, ``test.txt`` as HSNet publishes them, or ``fss_test_set.txt``), looked for beside the
classes under the split's name or given with ``class_list``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fssops.data.errors import AnnotationError, DataError, DuplicateError, MaskSizeError, MaskValueError
from fssops.data.folder import pair_files
from fssops.data.images import image_size, read_grey
from fssops.data.sources import PairedFilesSource

FIRST_ID = 1001
"""Class ids are 1001.. in alphabetical order of all class folders, so that none of the thousand is 255."""

_LIST_NAMES = {"train": ("train", "trn"), "trn": ("trn", "train"), "val": ("val",), "test": ("test", "fss_test_set")}


class FSS1000Source(PairedFilesSource):
    """FSS-1000 (Li et al., "FSS-1000: A 1000-Class Dataset for Few-Shot Segmentation", CVPR 2020).

    Args:
        root: folder of the class folders.
        split: ``train``, ``val`` or ``test`` with a list of that name in ``root``; ``all`` for every class.
        class_list: file of class names, one a line, instead of the one that ``split`` names.

    Raises:
        FileNotFoundError: folder or list missing.
        DataError: no class folder, or a listed class without folder.
    """

    format = "fss1000"

    def __init__(
        self, root: str | os.PathLike[str], split: str = "all", *, class_list: str | os.PathLike[str] | None = None
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: root must be a folder, got no such folder")
        folders = sorted(p for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not folders:
            raise DataError(f"{self.root}: root must hold one folder a class (FSS-1000 layout), got none")
        ids = {folder.name: FIRST_ID + i for i, folder in enumerate(folders)}
        names = [folder.name for folder in folders]
        if class_list is not None or split != "all":
            names = self._read_list(Path(class_list) if class_list else self._find_list(split), ids)
        files: dict[str, tuple[Path, Path]] = {}
        self._class_of: dict[str, int] = {}
        for name in names:
            for image, mask in sorted(pair_files(self.root / name), key=lambda pair: _number(pair[0])):
                files[f"{name}/{image.name}"] = (image, mask)
                self._class_of[f"{name}/{image.name}"] = ids[name]
        super().__init__(split, {ids[name]: name for name in names}, files)

    def _find_list(self, split: str) -> Path:
        tried = [self.root / f"{name}.txt" for name in _LIST_NAMES.get(split, (split,))]
        for file in tried:
            if file.is_file():
                return file
        raise FileNotFoundError(
            f"{tried[0]}: split {split!r} must have a list of class names there or in class_list "
            "(use split all for every class), got no such file"
        )

    @staticmethod
    def _read_list(file: Path, ids: dict[str, int]) -> list[str]:
        try:
            names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except FileNotFoundError:
            raise FileNotFoundError(f"{file}: class list must exist, got nothing of that name") from None
        missing = [name for name in names if name not in ids]
        if missing or not names:
            got = f"{len(missing)} others, e.g. {missing[0]!r}" if missing else "an empty list"
            raise AnnotationError(f"{file}: class list must name folders of {len(ids)} classes, got {got}")
        if len(set(names)) != len(names):
            raise DuplicateError(f"{file}: every class must be listed once, got {len(names) - len(set(names))} repeats")
        return names

    def label_map(self, name: str, class_ids: Sequence[int] | None = None) -> np.ndarray:
        """Class of every pixel, uint16; mask values from 128 on are object (HSNet), since outlines are smoothed."""
        image, mask = self.paths(name)
        number = self._class_of[name]
        grey = read_grey(mask)
        width, height = image_size(image)
        if grey.shape != (height, width):
            raise MaskSizeError(
                f"{mask}: mask must have the size of its image, {width} x {height}, "
                f"got {grey.shape[1]} x {grey.shape[0]}"
            )
        if grey.max(initial=0) == 1:
            raise MaskValueError(
                f"{mask}: mask must mark its object by values from 128 to 255 (FSS-1000), got 0 and 1; the format "
                "folder reads such masks"
            )
        wanted = class_ids is None or number in class_ids
        return np.asarray(((grey >= 128) & wanted).astype(np.uint16) * np.uint16(number))


def _number(file: Path) -> tuple[int, str]:
    """Sort 10.jpg behind 9.jpg."""
    return (int(file.stem) if file.stem.isdigit() else 1 << 30, file.stem)
