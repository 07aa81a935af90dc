"""What is known of images, videos and their classes: the records that data sets give and evaluation compares with.

Shapes stand here, once. A class is known everywhere by its index in :class:`Classes`; the numbers that a data set's
files use are the classes' ids.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from fssops import run_lengths
from fssops.data.errors import AnnotationError, DuplicateError
from fssops.data.json_values import name as json_name
from fssops.data.json_values import shown, whole_number, yes_or_no
from fssops.labels import IGNORE

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Category:
    """One class.

    Attributes:
        id: number in the data set's files, e.g. 1..90 in COCO.
        name: as the data set calls it.
        colour: RGB for pictures and palette files.
        is_thing: whether its objects are counted (things) or it is an amorphous region (stuff).
    """

    id: int
    name: str
    colour: Colour
    is_thing: bool = False


@dataclass(frozen=True)
class Classes:
    """The classes of a data set. A class is known everywhere by its index in ``categories``: 0..C-1.

    Attributes:
        categories: by index.

    Raises:
        DuplicateError: an id occurs twice.
    """

    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        """Refuse an id that occurs twice."""
        if len(self.index_of) != len(self.categories):
            ids = [category.id for category in self.categories]
            raise DuplicateError(
                f"categories: ids must be unique, got {next(i for i in ids if ids.count(i) > 1)} twice"
            )

    @cached_property
    def index_of(self) -> Mapping[int, int]:
        """Id in the data set's files -> index."""
        return {category.id: index for index, category in enumerate(self.categories)}

    @property
    def names(self) -> list[str]:
        """Class names by index."""
        return [category.name for category in self.categories]

    @property
    def colours(self) -> list[Colour]:
        """Class colours by index."""
        return [category.colour for category in self.categories]

    @property
    def things(self) -> tuple[int, ...]:
        """Indices of the countable classes."""
        return tuple(index for index, category in enumerate(self.categories) if category.is_thing)

    @property
    def background(self) -> int | None:
        """Index of the class that means none of the others: id 0, called background; None where there is none."""
        index = self.index_of.get(0)
        names = ("background", "bg", "__background__")
        return None if index is None or self.categories[index].name.lower() not in names else index

    def check_label_maps(self, where: str) -> None:
        """Refuse more classes than 8-bit label maps hold beside 255.

        Raises:
            AnnotationError: names ``where`` and the number.
        """
        if len(self) >= IGNORE:
            raise AnnotationError(f"{where}: label maps must be of at most {IGNORE - 1} classes, got {len(self)}")

    def __len__(self) -> int:
        return len(self.categories)

    def as_json(self) -> dict[str, Any]:
        """Plain values: the form of ``classes.json``."""
        rows = [
            {"id": c.id, "name": c.name, "color": list(c.colour), "isthing": int(c.is_thing)} for c in self.categories
        ]
        return {"classes": rows, "ignore_index": IGNORE}

    @staticmethod
    def from_rows(rows: Iterable[Any], where: str, *, things: bool | None = None) -> Classes:
        """Build from rows as COCO's ``categories`` have them, in ascending order of ids.

        Args:
            rows: dicts with ``id`` and ``name``; ``color`` and ``isthing`` where known.
            where: what errors call it.
            things: whether rows that do not say are things; None makes ``isthing`` compulsory.

        Raises:
            AnnotationError: a row is broken, or there is none.
        """
        listed = list(rows)
        if not listed:
            raise AnnotationError(f"{where}: there must be at least one class, got none")
        plain = distinct_colours(len(listed))
        categories: list[Category] = []
        for number, row in enumerate(listed):
            identifier = whole_number(row.get("id")) if isinstance(row, Mapping) else None
            if identifier is None:
                raise AnnotationError(
                    f"{where}: categories[{number}] must have an integer id and a name, got {shown(row)}"
                )
            name = row.get("name")
            name = str(name) if type(name) is int else json_name(name)
            if name is None:
                raise AnnotationError(f"{where}: category {identifier} must have a name, got {shown(row.get('name'))}")
            stated = row.get("isthing", things)
            is_thing = yes_or_no(stated)
            if is_thing is None:
                got = "nothing" if stated is None else shown(stated)
                raise AnnotationError(f"{where}: category {identifier} must say isthing (0 or 1), got {got}")
            colour = _colour(row.get("color"), where, identifier) or plain[number]
            categories.append(Category(identifier, name, colour, is_thing))
        try:
            return Classes(tuple(sorted(categories, key=lambda category: category.id)))
        except AnnotationError as error:
            raise AnnotationError(f"{where}: {error}") from None

    @staticmethod
    def from_names(
        names: Sequence[str],
        things: Iterable[int] = (),
        colours: Sequence[Colour] | None = None,
        ids: Sequence[int] | None = None,
    ) -> Classes:
        """Build from names by index, with the indices of the countable ones; without ``ids`` they equal indices."""
        countable = set(things)
        shades = distinct_colours(len(names)) if colours is None else colours
        numbers = range(len(names)) if ids is None else ids
        rows = enumerate(zip(numbers, names, shades, strict=True))
        return Classes(tuple(Category(number, name, colour, i in countable) for i, (number, name, colour) in rows))


def _colour(value: Any, where: str, identifier: int) -> Colour | None:
    if value is None:
        return None
    valid = isinstance(value, (list, tuple)) and len(value) == 3
    if not valid or any(isinstance(v, bool) or not isinstance(v, int) or not 0 <= v <= 255 for v in value):
        raise AnnotationError(
            f"{where}: color of category {identifier} must be three numbers 0..255, got {shown(value)}"
        )
    return value[0], value[1], value[2]


def distinct_colours(count: int) -> list[Colour]:
    """Colours that neighbouring numbers do not share: hues by the golden ratio, four steps of brightness."""
    colours = []
    for index in range(count):
        hue = (0.61803398875 * index + 0.02) % 1.0
        saturation, value = ((0.75, 0.9), (0.55, 0.75), (0.9, 0.65), (0.45, 0.95))[index // 3 % 4]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


TruthKind = Literal["semantic", "instance", "panoptic"]

Polygons = list[np.ndarray]
"""Polygons [n, 2] float64, (x, y) in pixels, that are one object together."""


RunLengths = dict[str, Any]
"""``size`` [height, width] and ``counts``, a compressed string."""


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
        outline: polygons, run lengths as COCO writes them, or a bool mask [H, W].
        crowd: a group that is not counted one by one.
        area: pixels, as the annotation says; what COCO's size ranges go by. None: what the mask covers.
    """

    id: int
    label: int
    outline: Polygons | RunLengths | np.ndarray
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

    def crowds(self, kind: TruthKind, things: Sequence[int]) -> list[bool]:
        """Whether each object is a crowd region, of which nothing is learnt.

        Args:
            kind: "panoptic": of all segments; else of the objects, those of countable classes.
            things: indices of the countable classes.
        """
        if kind == "panoptic":
            return [segment.crowd for segment in self.segments]
        if self.objects is not None:
            return [entry.crowd for entry in self.objects]
        return [segment.crowd for segment in self.segments if segment.label in set(things)]

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
        return run_lengths.draw(segmentation, width, height)


@dataclass
class VideoTruth:
    """What is known of a video of ``frames`` frames of ``height`` x ``width``.

    Attributes:
        id: how result files call it.
        tracks: its objects; None where the data set has no truth.
    """

    id: int | str
    frames: int
    height: int
    width: int
    tracks: list[TrackTruth] | None = None


def draw(outline: Polygons | RunLengths | np.ndarray, height: int, width: int) -> np.ndarray:
    """Rasterise an outline with COCO's rule: bool [H, W], clipped to the image."""
    return outline if isinstance(outline, np.ndarray) else run_lengths.draw(outline, width, height)


def labels_of_segments(segment_ids: np.ndarray, segments: Sequence[Segment], dtype: Any = np.uint8) -> np.ndarray:
    """Label of every pixel: [H, W] of ``dtype``, 255 where no segment is.

    Raises:
        AnnotationError: a label that 8 bits cannot hold beside 255.
    """
    labels = np.full(segment_ids.shape, IGNORE, dtype=dtype)
    if segments:
        greatest = max(segment.label for segment in segments)
        if dtype is np.uint8 and greatest >= IGNORE:
            raise AnnotationError(f"label map: labels of 8 bits must be at most {IGNORE - 1}, got {greatest}")
        ids = np.array([segment.id for segment in segments])
        order = ids.argsort()
        classes = np.array([segment.label for segment in segments], dtype=dtype)[order]
        place = np.searchsorted(ids[order], segment_ids).clip(max=len(ids) - 1)
        inside = ids[order][place] == segment_ids
        labels[inside] = classes[place[inside]]
    return labels
