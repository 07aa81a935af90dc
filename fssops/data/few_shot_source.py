"""Any images whose truth is known, seen as few-shot tasks see them: numbered classes, and which images hold which."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fssops import run_lengths
from fssops.data import class_index
from fssops.data.images import value_counts
from fssops.data.source import ImageSource, Source
from fssops.labels import IGNORE
from fssops.truth import ObjectTruth, Segment, Truth, draw, labels_of_segments

if TYPE_CHECKING:
    from PIL import Image

Progress = Callable[[int, int], None]
"""Called with (done, total) while something long runs."""


def numbers_in_order(images: ImageSource) -> list[int]:
    """Numbers 1, 2, .. of classes by index; the background of label maps has 0, and 255 is passed over."""
    free = (number for number in count(1) if number != IGNORE)
    background = images.classes.background if images.kind == "semantic" else None
    return [0 if index == background else next(free) for index in range(len(images.classes))]


class FewShotSource(Source):
    """A view of images: it knows nothing of folds or episodes.

    Args:
        images: the images and their truth.
        numbers: of each class by index, positive and never 255; 0 for what is background. None: in their order from 1.
        crowd: what crowd regions of a class are, where the truth tells them from objects: ``ignore`` (255 where no
            object of the class is drawn), ``object`` (part of the class's mask, as in PANet's COCO protocol), or
            ``background`` (as if they were not there).
        overlap: where outlined objects of different classes overlap, the ``smaller`` is on top, or the ``later``
            annotation of the file, whatever its class, as MM-Former's masks are painted.

    Attributes:
        classes: class number -> name.

    Raises:
        ValueError: a value outside these rules.
    """

    def __init__(
        self,
        images: ImageSource,
        numbers: Sequence[int] | None = None,
        *,
        crowd: Literal["ignore", "object", "background"] = "ignore",
        overlap: Literal["smaller", "later"] = "smaller",
    ) -> None:
        if crowd not in ("ignore", "object", "background"):
            raise ValueError(f"FewShotSource: crowd must be ignore, object or background, got {crowd!r}")
        if overlap not in ("smaller", "later"):
            raise ValueError(f"FewShotSource: overlap must be smaller or later, got {overlap!r}")
        super().__init__(images.split, images.names)
        self.images, self.crowd, self.overlap = images, crowd, overlap
        numbers = numbers_in_order(images) if numbers is None else numbers
        self._numbers = np.array(numbers, dtype=np.int64)
        self._index_of = {number: index for index, number in enumerate(numbers) if number}
        self.classes = {number: images.classes.names[index] for number, index in self._index_of.items()}
        greatest = max(self.classes, default=0)
        if IGNORE in self.classes or min(self.classes, default=1) < 1 or greatest > np.iinfo(np.uint16).max:
            raise ValueError(f"FewShotSource: numbers must be positive and not {IGNORE}, got {sorted(self.classes)}")
        self._numbers_are_indices = list(numbers) == list(range(len(numbers)))
        self._dtype: Any = np.uint8 if greatest < IGNORE else np.uint16
        self._areas: dict[str, dict[int, int]] | None = None

    def keep(self, names: Collection[str], split: str) -> None:
        super().keep(names, split)
        self.images.keep(names, split)

    # Images and masks.

    def image(self, name: str) -> Image.Image:
        """Read an image as upright 8-bit RGB."""
        return self.images.image(name)

    def label_map(self, name: str, class_ids: Sequence[int] | None = None) -> np.ndarray:
        """Class number of every pixel.

        Args:
            name: one of ``names``.
            class_ids: classes to keep; others become 0. None keeps all.

        Returns:
            [H, W] of class numbers, 0 background, 255 ignored; uint8 where every number fits, else uint16.

        Raises:
            MaskError: the stored mask breaks a rule (size, values).
        """
        truth = self.images.truth(name)
        numbers = self._numbers
        if class_ids is not None:
            numbers = np.where(np.isin(numbers, list(class_ids)), numbers, 0)
        if truth.label_map is not None:
            if class_ids is None and self._numbers_are_indices:
                return truth.label_map
            table = np.zeros(256, dtype=self._dtype)
            table[: len(numbers)] = numbers
            table[IGNORE] = IGNORE
            return table.take(truth.label_map)
        if truth.segment_ids is not None:
            return self._segment_map(truth, numbers)
        return (self._latest_on_top if self.overlap == "later" else self._smallest_on_top)(truth, numbers)

    def _segment_map(self, truth: Truth, numbers: np.ndarray) -> np.ndarray:
        assert truth.segment_ids is not None
        shown = []
        for segment in truth.segments:
            number = int(numbers[segment.label])
            if segment.crowd and self.crowd == "background":
                number = 0
            # Where no segment is, labels are 255.
            if not (segment.crowd and self.crowd == "ignore" and number):
                shown.append(Segment(segment.id, number))
        return labels_of_segments(truth.segment_ids, shown, self._dtype)

    def _smallest_on_top(self, truth: Truth, numbers: np.ndarray) -> np.ndarray:
        # In the order of pycocotools' masks, column by column: painting across memory takes several times as long.
        label = np.zeros((truth.height, truth.width), dtype=self._dtype, order="F")
        objects: list[tuple[int, int, Any]] = []  # as run lengths: masks of a large picture's objects take gigabytes
        for entry in truth.objects or ():
            if not numbers[entry.label]:
                continue
            if self._is_object(entry):
                runs = run_lengths.encode_outline(entry.outline, truth.width, truth.height)
                objects.append((run_lengths.area(runs), numbers[entry.label], runs))
            elif self.crowd == "ignore":
                np.copyto(label, IGNORE, where=draw(entry.outline, truth.height, truth.width))
        for _, number, runs in sorted(objects, key=lambda o: -o[0]):
            np.copyto(label, int(number), where=run_lengths.decode(runs))
        return np.ascontiguousarray(label)

    def _latest_on_top(self, truth: Truth, numbers: np.ndarray) -> np.ndarray:
        """Objects of all classes painted over each other; those of classes that are not wanted as background."""
        label = np.zeros((truth.height, truth.width), dtype=self._dtype, order="F")  # as above
        shown = False
        for entry in truth.objects or ():
            if entry.crowd and self.crowd == "background":
                continue
            value = int(numbers[entry.label]) if self._is_object(entry) else IGNORE
            if not value and not shown:
                continue  # background over nothing: decoding its mask is most of the work
            np.copyto(label, value, where=draw(entry.outline, truth.height, truth.width))
            shown = True
        return np.ascontiguousarray(label)

    def _is_object(self, entry: ObjectTruth | Segment) -> bool:
        return not entry.crowd or self.crowd == "object"

    def instance_map(self, name: str, class_id: int) -> np.ndarray:
        """Number the objects of a class: int32 [H, W], 0 elsewhere.

        Stored numbers stay; segments and outlined objects count from 1, the smaller on top, crowds only under
        ``crowd="object"``. Without such truth, connected components (8 neighbours) of the class's mask.
        """
        stored = self.images.object_numbers(name)
        if stored is not None:
            return np.where(self.label_map(name, [class_id]) == class_id, stored, 0).astype(np.int32)
        if not self.images.offers("instance"):
            from scipy import ndimage

            mask = self.label_map(name, [class_id]) == class_id
            return np.asarray(ndimage.label(mask, structure=np.ones((3, 3), dtype=int))[0], dtype=np.int32)
        truth, index = self.images.truth(name), self._index_of[class_id]
        masks: list[np.ndarray] = []
        if truth.segment_ids is not None:
            segments = [segment for segment in truth.segments if segment.label == index and self._is_object(segment)]
            masks = [np.asarray(truth.segment_ids == segment.id) for segment in segments]
        else:
            objects = [entry for entry in truth.objects or () if entry.label == index and self._is_object(entry)]
            masks = [draw(entry.outline, truth.height, truth.width) for entry in objects]
        numbered = np.zeros((truth.height, truth.width), dtype=np.int32)
        for number, mask in enumerate(sorted(masks, key=lambda m: -int(m.sum())), start=1):
            numbered[mask] = number
        return numbered

    def scribble_map(self, name: str) -> np.ndarray | None:
        """Stored scribbles: uint8 [H, W], 0 background stroke, 255 unlabelled, else a stroke's number; or None."""
        return self.images.scribble_map(name)

    # Which images hold which class.

    def areas(self, progress: Progress | None = None) -> Mapping[str, Mapping[int, int]]:
        """Pixels of each class in each image: name -> {class number: pixels > 0}.

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
            for name, of_classes in zip(self.names, pool.map(self._areas_of, self.names), strict=True):
                areas[name] = of_classes
                if progress:
                    progress(len(areas), len(self.names))
        return areas

    def _areas_of(self, name: str) -> dict[int, int]:
        return self.areas_in(self.images.truth(name))

    def areas_in(self, truth: Truth) -> dict[int, int]:
        """Pixels of each class in an image, by ascending number, classes without pixels left out.

        Of outlined objects the area of their union: other classes drawn over it do not make it smaller.
        """
        areas: dict[int, int] = {}
        if truth.label_map is not None or truth.segment_ids is not None:
            if truth.label_map is None:
                counts = np.bincount(self._segment_map(truth, self._numbers).reshape(-1))
                numbers = np.arange(len(counts))
            else:
                counts, numbers = value_counts(truth.label_map), self._numbers
            areas = {int(n): int(c) for n, c in zip(numbers, counts, strict=False) if c and int(n) in self.classes}
        else:
            outlines: dict[int, list[Any]] = {}
            for entry in truth.objects or ():
                if self._is_object(entry):
                    outlines.setdefault(int(self._numbers[entry.label]), []).append(entry.outline)
            for number, of_class in outlines.items():
                areas[number] = run_lengths.area_of_union(of_class, truth.width, truth.height)
        return {number: areas[number] for number in sorted(areas) if areas[number]}

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

    def images_of_annotations(self, class_id: int) -> list[str] | None:
        """Images with any annotation of a class, crowds included, in PANet's order; None where it has no such list."""
        return self.images.images_of_annotations(self._index_of[class_id])

    def classes_of(self, name: str, min_area: int = 1) -> list[int]:
        """Classes with at least ``min_area`` pixels in an image, ascending."""
        return sorted(c for c, area in self.areas()[name].items() if area >= max(min_area, 1))

    # What it is.

    def truth_files(self) -> list[Path]:
        """Files on which :meth:`areas` depends; none where it is cheap to compute and need not be stored."""
        return list(dict.fromkeys(file for name in self.names for file in self.images.truth_files(name)))

    def describe(self) -> dict[str, object]:
        """What an episode list records of its source: nothing that depends on the machine."""
        content = {"format": self.format, "split": self.split, "images": len(self.names), "classes": len(self.classes)}
        content.update(self.images.identity())
        if self.images.offers("instance"):
            content["crowd"] = self.crowd
            if self.overlap != "smaller":
                content["overlap"] = self.overlap
        return content
