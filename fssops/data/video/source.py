"""What every video data set offers, whatever its layout: frames, and objects that keep their number through them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from fssops.data import coco
from fssops.data.universal.metadata import Metadata


@dataclass
class TrackTruth:
    """One object of a video.

    Attributes:
        id: unique in the data set.
        label: class index.
        segmentations: one entry a frame: polygons or run lengths as COCO writes them, a bool mask [H, W], or None where
            the data set says nothing of the object. A mask may be empty: the object is said not to be seen.
        crowd: a group that is not counted one by one.
        areas: pixels in each frame, as the annotation says; None where it says nothing; empty: what the masks cover.
    """

    id: int
    label: int
    segmentations: list[Any]
    crowd: bool = False
    areas: list[float | None] = field(default_factory=list)

    def mask(self, frame: int, height: int, width: int) -> np.ndarray | None:
        """Draw it in one frame: bool [H, W], or None where the data set says nothing."""
        segmentation = self.segmentations[frame]
        if segmentation is None or isinstance(segmentation, np.ndarray):
            return segmentation
        if not segmentation:
            return np.zeros((height, width), dtype=bool)
        return coco.draw(segmentation, width, height)


class VideoSource(ABC):
    """Videos and truth of one split. Picklable, so loader processes may be spawned.

    Attributes:
        format: name of the layout.
        split: which part of the data set.
        metadata: its classes.
        names: every video, in the order of the files; unique. Methods refuse other names with a ValueError.
        known: the same as a set.
    """

    format: ClassVar[str]

    def __init__(self, split: str, metadata: Metadata, names: Sequence[str]) -> None:
        self.split, self.metadata, self.names = split, metadata, list(names)
        self.known = frozenset(self.names)

    def check_name(self, name: str) -> None:
        """Refuse what is no video of this split.

        Raises:
            ValueError: names it.
        """
        if name not in self.known:
            raise ValueError(f"{self.label}: name must be one of its {len(self.names)} videos, got {name!r}")

    @abstractmethod
    def frames(self, name: str) -> int:
        """Number of frames of a video, at least 1."""

    @abstractmethod
    def size(self, name: str) -> tuple[int, int]:
        """(height, width) of a video's frames."""

    @abstractmethod
    def frame(self, name: str, index: int) -> Image.Image:
        """Read a frame as upright 8-bit RGB.

        Raises:
            ImageFileError, FileNotFoundError: it is missing, damaged, or of another size than its video.
        """

    @abstractmethod
    def tracks(self, name: str) -> list[TrackTruth]:
        """The objects of a video.

        Raises:
            DataError: the data set has no truth.
        """

    def video_id(self, name: str) -> int | str:
        """How results files call a video."""
        return name

    @property
    def has_truth(self) -> bool:
        """Whether :meth:`tracks` can be asked; the files of test splits hold none."""
        return True

    def problems(self) -> Iterator[tuple[str, str]]:
        """Faults found on opening that spoil single videos or objects only, as (kind of finding, message)."""
        return iter(())

    @property
    def label(self) -> str:
        """Short name for reports, e.g. ``ytvis2019 train``."""
        return f"{self.format} {self.split}"
