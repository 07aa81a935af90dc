"""What every fixed-class data set offers, whatever its layout on disk: images, and their truth in one form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

from PIL import Image

from fssops.truth import Classes, Truth, TruthKind


class UniversalSource(ABC):
    """Images and truth of one split. Picklable, so loader processes may be spawned.

    Attributes:
        format: name of the layout.
        kind: the form in which the truth is stored. From panoptic truth the two others follow.
        split: which part of the data set.
        classes: its classes.
        names: every image, in the order of the files; unique.
        known: the same as a set.
    """

    format: ClassVar[str]

    def __init__(self, kind: TruthKind, split: str, classes: Classes, names: Sequence[str]) -> None:
        self.kind: TruthKind = kind
        self.split = split
        self.classes = classes
        self.names = list(names)
        self.known = frozenset(self.names)

    def check_name(self, name: str) -> None:
        """Refuse what is no image of this split.

        Raises:
            ValueError: names it.
        """
        if name not in self.known:
            raise ValueError(f"{self.label}: name must be one of its {len(self.names)} images, got {name!r}")

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

    def image_id(self, name: str) -> int | str:
        """How results files call an image."""
        return name

    def training_names(self, kind: TruthKind) -> list[str]:
        """Images to train on; for instances without those that have none, as published."""
        return self.names

    def problems(self) -> Iterator[tuple[str, str]]:
        """Faults found on opening that spoil single annotations only, as (kind of finding, message)."""
        return iter(())

    @property
    def label(self) -> str:
        """Short name for reports, e.g. ``coco_panoptic val2017``."""
        return f"{self.format} {self.split}"

    def offers(self, kind: TruthKind) -> bool:
        """Whether the truth can be had in a form."""
        return self.kind in (kind, "panoptic")
