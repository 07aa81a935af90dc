"""What every fixed-class data set offers, whatever its layout on disk: images, and their truth in one form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from PIL import Image

from fssops.data import coco
from fssops.data.universal.metadata import Metadata
from fssops.structures import IGNORE

TruthKind = Literal["semantic", "instance", "panoptic"]

Polygons = list[np.ndarray]
"""Polygons [n, 2] float64, (x, y) in pixels, that are one object together."""


@dataclass
class Segment:
    """One region of a panoptic map.

    Attributes:
        id: its value in the map.
        label: class index.
        crowd: a group that is not counted one by one.
    """

    id: int
    label: int
    crowd: bool = False


@dataclass
class ObjectTruth:
    """One object, or a crowd region.

    Attributes:
        id: unique in the data set.
        label: class index.
        outline: polygons, or a bool mask [H, W].
        crowd: a group that is not counted one by one.
        area: pixels, as the annotation says; what COCO's size ranges go by. None: what the mask covers.
    """

    id: int
    label: int
    outline: Polygons | np.ndarray
    crowd: bool = False
    area: float | None = None

    def mask(self, height: int, width: int) -> np.ndarray:
        """Draw it: bool [H, W]."""
        return draw(self.outline, height, width)


@dataclass
class Truth:
    """What is known of an image of ``height`` x ``width``; forms that the data set does not have are None.

    Attributes:
        label_map: [H, W] class indices, 255 ignored.
        segment_ids: [H, W] int32 ids of ``segments``, 0 void.
        segments: of ``segment_ids``.
        objects: outlines of objects, which may overlap.
    """

    height: int
    width: int
    label_map: np.ndarray | None = None
    segment_ids: np.ndarray | None = None
    segments: list[Segment] = field(default_factory=list)
    objects: list[ObjectTruth] | None = None

    def semantic(self) -> np.ndarray:
        """Class of every pixel, uint8 [H, W]; of a panoptic map its segments', crowds included, void 255.

        Raises:
            ValueError: only outlines are known, which do not cover the image.
        """
        if self.label_map is not None:
            return self.label_map
        if self.segment_ids is None:
            raise ValueError("Truth.semantic: the data set must have label maps or segments, got only objects")
        return labels_of_segments(self.segment_ids, self.segments)

    def instances(self, things: Sequence[int]) -> list[ObjectTruth]:
        """Objects; of a panoptic map its segments of countable classes.

        Raises:
            ValueError: only a label map is known.
        """
        if self.objects is not None:
            return self.objects
        if self.segment_ids is None:
            raise ValueError("Truth.instances: the data set must have objects or segments, got only label maps")
        return [
            ObjectTruth(segment.id, segment.label, self.segment_ids == segment.id, segment.crowd)
            for segment in self.segments
            if segment.label in set(things)
        ]


class UniversalSource(ABC):
    """Images and truth of one split. Picklable, so loader processes may be spawned.

    Attributes:
        format: name of the layout.
        kind: the form in which the truth is stored. From panoptic truth the two others follow.
        split: which part of the data set.
        metadata: its classes.
        names: every image, in the order of the files; unique.
        known: the same as a set.
    """

    format: ClassVar[str]

    def __init__(self, kind: TruthKind, split: str, metadata: Metadata, names: Sequence[str]) -> None:
        self.kind: TruthKind = kind
        self.split = split
        self.metadata = metadata
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


def draw(outline: Polygons | np.ndarray, height: int, width: int) -> np.ndarray:
    """Rasterise an outline with COCO's rule: bool [H, W], clipped to the image."""
    if isinstance(outline, np.ndarray):
        return outline
    flat = [polygon.reshape(-1).tolist() for polygon in outline]
    return coco.draw(flat, width, height)


def labels_of_segments(segment_ids: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    """Class index of every pixel: uint8 [H, W], 255 where no segment is."""
    labels = np.full(segment_ids.shape, IGNORE, dtype=np.uint8)
    if segments:
        ids = np.array([segment.id for segment in segments])
        order = ids.argsort()
        classes = np.array([segment.label for segment in segments], dtype=np.uint8)[order]
        place = np.searchsorted(ids[order], segment_ids).clip(max=len(ids) - 1)
        found = ids[order][place] == segment_ids
        labels[found] = classes[place[found]]
    return labels
