"""What every video data set offers, whatever its layout: frames, and objects that keep their number through them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

from PIL import Image

from fssops.truth import Classes, TrackTruth


class VideoSource(ABC):
    """Videos and truth of one split. Picklable, so loader processes may be spawned.

    Attributes:
        format: name of the layout.
        split: which part of the data set.
        classes: its classes.
        names: every video, in the order of the files; unique. Methods refuse other names with a ValueError.
        known: the same as a set.
    """

    format: ClassVar[str]

    def __init__(self, split: str, classes: Classes, names: Sequence[str]) -> None:
        self.split, self.classes, self.names = split, classes, list(names)
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
