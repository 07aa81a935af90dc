"""What every few-shot data set offers, whatever its layout on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image
from scipy import ndimage

from fssops.data import class_index
from fssops.data.images import read_image
from fssops.structures import IGNORE

Progress = Callable[[int, int], None]
"""Called with (done, total) while something long runs."""


class FewShotSource(ABC):
    """Images with per-pixel classes, and which images hold which class.

    A source knows nothing of folds or episodes. It can be pickled, so loader processes may be spawned.

    Attributes:
        format: name of the layout.
        split: which part of the data set.
        classes: class id -> name; ids are positive and never 255.
        names: every image, in the order of the list file; unique.
    """

    format: ClassVar[str]

    def __init__(self, split: str, classes: Mapping[int, str], names: Sequence[str]) -> None:
        self.split = split
        self.classes = dict(classes)
        self.names = list(names)
        self._known_names = frozenset(self.names)
        self._areas: dict[str, dict[int, int]] | None = None

    # What a layout must provide.

    @abstractmethod
    def image(self, name: str) -> Image.Image:
        """Read an image as upright 8-bit RGB."""

    @abstractmethod
    def label_map(self, name: str, class_ids: Sequence[int] | None = None) -> np.ndarray:
        """Class id of every pixel.

        Args:
            name: one of ``names``.
            class_ids: classes to keep; others become 0. None keeps all.

        Returns:
            [H, W] of class ids, 0 background, 255 ignored; uint8 where every id of the source fits, else uint16.

        Raises:
            MaskError: the stored mask breaks a rule (size, values).
        """

    # What a layout may do better.

    def instance_map(self, name: str, class_id: int) -> np.ndarray:
        """Number the objects of a class: int32 [H, W], 0 elsewhere.

        Here: connected components (8 neighbours) of the class's mask, for layouts without instance truth.
        """
        mask = self.label_map(name, [class_id]) == class_id
        numbered, _ = ndimage.label(mask, structure=np.ones((3, 3), dtype=int))
        return np.asarray(numbered, dtype=np.int32)

    def scribble_map(self, name: str) -> np.ndarray | None:
        """Stored scribbles: uint8 [H, W], 0 background stroke, 255 unlabelled, else a stroke's number; or None."""
        return None

    def files(self) -> Iterable[str]:
        """Files on which :meth:`areas` depends; empty when it is cheap to compute and need not be stored."""
        return ()

    def _areas_of(self, name: str) -> dict[int, int]:
        """Pixels of each class in an image, classes without pixels left out."""
        return count_classes(self.label_map(name), self.classes)

    # What follows from it.

    @property
    def label(self) -> str:
        """Short name for reports, e.g. ``voc train``."""
        return f"{self.format} {self.split}"

    def areas(self, progress: Progress | None = None) -> Mapping[str, Mapping[int, int]]:
        """Pixels of each class in each image: name -> {class id: pixels > 0}.

        Computed once, on several threads, and for large data sets kept on disk between runs
        (:mod:`fssops.data.class_index`).
        """
        if self._areas is None:
            key = class_index.key_of(self)
            stored = class_index.load(key) if key else None
            if stored is None:
                stored = self._measure(progress)
                if key:
                    class_index.save(key, stored)
            self._areas = stored
        return self._areas

    def _measure(self, progress: Progress | None) -> dict[str, dict[int, int]]:
        areas: dict[str, dict[int, int]] = {}
        with ThreadPoolExecutor(max_workers=4) as pool:
            for name, found in zip(self.names, pool.map(self._areas_of, self.names), strict=True):
                areas[name] = found
                if progress:
                    progress(len(areas), len(self.names))
        return areas

    def images_of(self, class_id: int, min_area: int = 1, avoid: Collection[int] = ()) -> list[str]:
        """Images that hold a class, in the order of ``names``.

        Args:
            class_id: one of ``classes``.
            min_area: pixels of the class, at original size, that an image must have (inclusive). BAM and MSANet
                ask for 2048, PANet for 1.
            avoid: leave out images with even one pixel of these classes.

        Raises:
            ValueError: the class does not exist.
        """
        if class_id not in self.classes:
            raise ValueError(f"{self.label}: class_id must be one of the {len(self.classes)} classes, got {class_id}")
        areas = self.areas()
        banned = set(avoid)
        return [
            name
            for name in self.names
            if areas[name].get(class_id, 0) >= max(min_area, 1) and banned.isdisjoint(areas[name])
        ]

    def classes_of(self, name: str, min_area: int = 1) -> list[int]:
        """Classes with at least ``min_area`` pixels in an image, ascending."""
        return sorted(c for c, area in self.areas()[name].items() if area >= max(min_area, 1))

    def describe(self) -> dict[str, object]:
        """What an episode list records of its source: nothing that depends on the machine."""
        return {"format": self.format, "split": self.split, "images": len(self.names), "classes": len(self.classes)}

    def _check_name(self, name: str) -> None:
        if name not in self._known_names:
            raise ValueError(f"{self.label}: name must be one of its {len(self.names)} images, got {name!r}")


class PairedFilesSource(FewShotSource):
    """A layout that stores a mask file for every image file.

    Args:
        split: which part of the data set.
        classes: class id -> name.
        files: name -> image file and mask file.
    """

    def __init__(self, split: str, classes: Mapping[int, str], files: Mapping[str, tuple[Path, Path]]) -> None:
        super().__init__(split, classes, list(files))
        self._files = dict(files)

    def paths(self, name: str) -> tuple[Path, Path]:
        """Image file and mask file of an image."""
        self._check_name(name)
        return self._files[name]

    def image(self, name: str) -> Image.Image:
        return read_image(self.paths(name)[0])

    def files(self) -> Iterable[str]:
        return [str(mask) for _, mask in self._files.values()]


def count_classes(label: np.ndarray, classes: Collection[int]) -> dict[int, int]:
    """Pixels of each of ``classes`` in a label map, classes without pixels left out."""
    counts = np.bincount(label.reshape(-1))
    return {int(c): int(counts[c]) for c in np.flatnonzero(counts) if c != IGNORE and int(c) in classes}


def keep_classes(label: np.ndarray, class_ids: Sequence[int] | None) -> np.ndarray:
    """Set every pixel that is neither of ``class_ids`` nor ignored to 0; None keeps all."""
    if class_ids is None:
        return label
    keep = np.zeros(max(256, int(label.max(initial=0)) + 1), dtype=bool)
    keep[[c for c in class_ids if c < len(keep)]] = True
    keep[IGNORE] = True
    return np.where(keep[label], label, label.dtype.type(0))
