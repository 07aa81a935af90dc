"""What every data set offers, whatever its layout on disk: images or videos of one split, their truth and classes."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fssops.truth import Classes, TrackTruth, Truth, TruthKind

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

PathLike = str | os.PathLike[str]


class Source:
    """Items of one split by name. Picklable, so loader processes may be spawned.

    Attributes:
        format: name of the layout.
        split: which part of the data set.
        names: every item, in the order of the files; unique.
    """

    format: str = ""
    items: ClassVar[str] = "images"

    def __init__(self, split: str, names: Sequence[str]) -> None:
        self.split = split
        self.names = list(names)
        self._listed = frozenset(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._listed

    def keep(self, names: Collection[str], split: str) -> None:
        """Leave only some of the items, as a split of this name."""
        self.split, self._listed = split, frozenset(names)
        self.names = [name for name in self.names if name in self._listed]

    def check_name(self, name: str) -> None:
        """Refuse what is no item of this split.

        Raises:
            ValueError: names it.
        """
        if name not in self._listed:
            raise ValueError(f"{self.label}: name must be one of its {len(self.names)} {self.items}, got {name!r}")

    @property
    def label(self) -> str:
        """Short name for reports, e.g. ``coco_panoptic val2017``."""
        return f"{self.format} {self.split}"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Faults found on opening that spoil single annotations only, as (kind of finding, message)."""
        return iter(())

    def left_out(self) -> Iterator[str]:
        """What lies in the folder and is not read, and why."""
        return iter(())


class ImageSource(Source, ABC):
    """Images with their truth.

    Attributes:
        kind: the form in which the truth is stored. From panoptic truth the two others follow.
        classes: its classes.
    """

    def __init__(self, kind: TruthKind, split: str, classes: Classes, names: Sequence[str]) -> None:
        super().__init__(split, names)
        self.kind: TruthKind = kind
        self.classes = classes

    # What a layout must provide.

    @abstractmethod
    def image(self, name: str) -> Image.Image:
        """Read an image as upright 8-bit RGB.

        Raises:
            ValueError: no such image.
        """

    @abstractmethod
    def truth(self, name: str) -> Truth:
        """Read what is known of an image.

        Raises:
            ValueError: no such image.
            DataError: a file breaks a rule.
        """

    # What a layout may know better.

    def object_numbers(self, name: str) -> np.ndarray | None:
        """Objects told apart beside a label map: int32 [H, W], 0 none; None where only classes are known."""
        return None

    def scribble_map(self, name: str) -> np.ndarray | None:
        """Stored scribbles: uint8 [H, W], 0 background stroke, 255 unlabelled, else a stroke's number; or None."""
        return None

    def images_of_annotations(self, label: int) -> list[str] | None:
        """Images with any annotation of a class, in the order that PANet's published lists have; None: it has none."""
        return None

    def disagreements(self, name: str, truth: Truth) -> Iterator[str]:
        """Where files that should say the same do not, although the truth could be read from one of them."""
        return iter(())

    def image_id(self, name: str) -> int | str:
        """How results files call an image."""
        return name

    def crowds(self, name: str, kind: TruthKind) -> list[bool]:
        """Whether each object of an image is a crowd region, see :meth:`Truth.crowds`; most layouts read its truth."""
        return self.truth(name).crowds(kind, self.classes.things)

    def image_file(self, name: str) -> Path | None:
        """File of an image; None where it is drawn."""
        return None

    def truth_files(self, name: str) -> tuple[Path, ...]:
        """Files that the truth of an image is read from; none where it is drawn."""
        return ()

    def identity(self) -> Mapping[str, object]:
        """What else decides which images and truth these are; nothing that depends on the machine."""
        return {}

    def offers(self, kind: TruthKind) -> bool:
        """Whether the truth can be had in a form."""
        return self.kind in (kind, "panoptic")


class VideoSource(Source, ABC):
    """Videos with their truth: frames, and objects that keep their number through them.

    Attributes:
        classes: its classes.
    """

    items = "videos"

    def __init__(self, split: str, classes: Classes, names: Sequence[str]) -> None:
        super().__init__(split, names)
        self.classes = classes

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
