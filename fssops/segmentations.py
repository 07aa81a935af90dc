"""What predictors find: one family of results, of pictures and of videos, and what can be made of any of them.

    found = fssops.load("mask2former-swin-l-coco-instance")("street.jpg")
    found.names, found.scores, found.boxes, found.masks
    found.overlay().save("seen.jpg")

Arrays are NumPy's, on the CPU. Boxes are (x0, y0, x1, y1) in pixels; the right and the lower side are exclusive.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fssops.evaluation.regions import SHOWN_SCORE, object_regions, segment_regions, semantic_regions
from fssops.evaluation.submissions import coco_results, submission_rows
from fssops.pictures import Region, overlay, overlay_ways
from fssops.polygons import polygons
from fssops.run_lengths import area, decode
from fssops.structures import PanopticSegment
from fssops.truth import Classes

if TYPE_CHECKING:
    from supervision import Detections

Array = np.ndarray[Any, Any]

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""Endings of pictures that :meth:`Segmentation.save` writes."""


@dataclass(frozen=True)
class ClassCount:
    """How much of a class there is in a result.

    Attributes:
        name: of the class.
        count: number of regions, of a video of objects.
        pixels: that they cover, those shared by two regions twice; of a video in all frames.
        mean_score: of the regions, in [0, 1]; None where they have no scores.
    """

    name: str
    count: int
    pixels: int
    mean_score: float | None


@dataclass(kw_only=True, eq=False)
class Segmentation:
    """N regions of one image of H x W pixels, best first; of instance segmentation one an object.

    Attributes:
        image: [H, W, 3] uint8, RGB.
        categories: classes of the model, with the ids and colours of its data set.
        labels: [N] int64 class indices.
        masks: [N, H, W] bool.
        scores: [N] float32 in [0, 1]; None where the system gives none.
        origin: file, and of a video its frame, for messages.
        frame: number in its video, from 0.
        tracked: whether the place of a region says which object it is throughout a video; some masks may then be empty.
    """

    image: Array = field(repr=False)
    categories: Classes = field(repr=False)
    labels: Array
    masks: Array = field(repr=False)
    scores: Array | None
    origin: str = ""
    frame: int = 0
    tracked: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes of the model, by index."""
        return tuple(self.categories.names)

    @property
    def names(self) -> list[str]:
        """Class names of the N regions."""
        return [self.categories.categories[label].name for label in self.labels]

    @property
    def boxes(self) -> Array:
        """[N, 4] float32; zeros for an empty mask."""
        boxes = np.zeros((len(self.masks), 4), dtype=np.float32)
        for number, mask in enumerate(self.masks):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            if len(rows):
                boxes[number] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return boxes

    def regions(self, least_score: float = SHOWN_SCORE) -> list[Region]:
        """What :meth:`overlay` draws."""
        scores = None if self.scores is None else self.scores.tolist()
        names = self.categories.names
        return object_regions(list(self.masks), self.labels.tolist(), names, scores, least_score=least_score)

    def overlay(self, least_score: float = SHOWN_SCORE) -> Image.Image:
        """The regions on the picture, each in a colour and with its name.

        Args:
            least_score: objects below it are left out; regions that are no scored objects are always drawn.
        """
        return Image.fromarray(overlay(self.image, self.regions(least_score)))

    def counts(self, least_score: float = 0.0) -> list[ClassCount]:
        """How much of each class there is, by class index, in regions of at least a score; absent classes left out."""
        pixels, scores = self.masks.sum(axis=(1, 2)), self.scores
        return _counts(self.categories, self.labels, scores, pixels, least_score)

    def to_polygons(self) -> list[list[Array]]:
        """The outlines of the N masks: of each a polygon a connected part, see :func:`fssops.polygons.polygons`."""
        return [polygons(mask) for mask in self.masks]

    def to_coco(self, image_id: int | str = 1, *, as_polygons: bool = False) -> list[dict[str, Any]]:
        """COCO's annotations, those with a score for results too; empty masks have none.

        Tools that score masks take the size of an object from ``bbox`` where results have one (pycocotools'
        ``loadRes``): leave it out there, as ``instances.json`` of the verb ``predict`` does.

        Args:
            image_id: as the annotation file calls the image.
            as_polygons: ``segmentation`` as polygons instead of compressed run lengths.
        """
        seen = np.flatnonzero(self.masks.any(axis=(1, 2)))
        scores = np.ones(len(self)) if self.scores is None else self.scores
        ids = [category.id for category in self.categories.categories]
        rows = coco_results(image_id, self.labels[seen].tolist(), scores[seen].tolist(), self.masks[seen], ids)
        for number, (row, mask, box) in enumerate(zip(rows, self.masks[seen], self.boxes[seen], strict=True), start=1):
            x0, y0, x1, y1 = box.tolist()
            row |= {"id": number, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(mask.sum()), "iscrowd": 0}
            if as_polygons:
                row["segmentation"] = [polygon.ravel().tolist() for polygon in polygons(mask)]
            if self.scores is None:
                del row["score"]
        return rows

    def to_detections(self) -> Detections:
        """As ``supervision.Detections``, with ``class_name`` among the data; empty masks are left out.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError:
            raise ImportError(
                "to_detections: the package supervision must be installed (fssops[detections]), got none"
            ) from None
        seen = np.flatnonzero(self.masks.any(axis=(1, 2)))
        return Detections(
            xyxy=self.boxes[seen],
            mask=self.masks[seen],
            confidence=None if self.scores is None else self.scores[seen],
            class_id=self.labels[seen],
            tracker_id=seen if self.tracked else None,
            data={"class_name": np.array(self.names, dtype=str)[seen]},
        )

    def arrays(self) -> dict[str, Array]:
        """What ``.npz`` files hold: every array of the result but the picture, boxes, and names of all classes."""
        values = {option.name: getattr(self, option.name) for option in fields(self) if option.name != "image"}
        held = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        return {**held, "boxes": self.boxes, "classes": np.array(self.classes, dtype=str)}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a file; the ending says what.

        Args:
            path: ``.jpg``, ``.png``, ``.webp``, ...: the :meth:`overlay`; ``.json``: a COCO file of this image with
                :meth:`to_coco`; ``.npz``: :meth:`arrays`, compressed. Its folder is made where it is missing.

        Returns:
            the path.

        Raises:
            ValueError: another ending.
        """
        target, ending = _target(path, {*PICTURES, ".json", ".npz"})
        if ending == ".npz":
            np.savez_compressed(target, **self.arrays())  # type: ignore[arg-type]
        elif ending == ".json":
            height, width = self.image.shape[:2]
            row = {"id": 1, "file_name": Path(self.origin).name, "width": width, "height": height}
            categories = self.categories.as_json()["classes"]
            body = {"images": [row], "annotations": self.to_coco(), "categories": categories}
            target.write_text(json.dumps(body) + "\n", encoding="utf-8")
        else:
            self.overlay().save(target)
        return target


@dataclass(kw_only=True, eq=False)
class SemanticSegmentation(Segmentation):
    """A class for each pixel; the N regions are the classes that occur.

    Attributes:
        label_map: [H, W] int64 class indices.
    """

    label_map: Array = field(repr=False)

    def regions(self, least_score: float = SHOWN_SCORE) -> list[Region]:
        """One a class, in the colour of its data set."""
        return semantic_regions(self.label_map, self.categories.names, self.categories.colours)


@dataclass(kw_only=True, eq=False)
class PanopticSegmentation(Segmentation):
    """A segment for each pixel; the N regions are the segments.

    Attributes:
        segment_ids: [H, W] int32; 0 where nothing was assigned.
        segments: one a region.
    """

    segment_ids: Array = field(repr=False)
    segments: list[PanopticSegment] = field(repr=False)

    def regions(self, least_score: float = SHOWN_SCORE) -> list[Region]:
        """Things in colours of their own, stuff in its class's."""
        rows = [(mask, s.label, s.is_thing, False) for mask, s in zip(self.masks, self.segments, strict=True)]
        return segment_regions(rows, self.categories.names, self.categories.colours)


@dataclass(kw_only=True, eq=False)
class FewShotSegmentation(Segmentation):
    """The classes that a support set has shown; the N regions are those that occur, the background is none.

    Attributes:
        scores: mean probability of a region's class in it.
        label_map: [H, W] uint8; 0 background, n = ``classes[n]``.
        probabilities: [1 + ways, H, W] float32, the softmax of the logits; sums to 1 over the first axis.
        seconds: time of the steps "read", "encode" and "match".
    """

    label_map: Array = field(repr=False)
    probabilities: Array = field(repr=False)
    seconds: dict[str, float] = field(default_factory=dict, repr=False)

    def overlay(self, least_score: float = SHOWN_SCORE) -> Image.Image:
        """The classes on the picture, which is paled elsewhere."""
        return Image.fromarray(overlay_ways(self.image, self.label_map))


@dataclass(kw_only=True, eq=False)
class UniversalSegmentation(Segmentation):
    """What a system of fixed classes found in one image, by task; what was not asked for is None.

    Its own regions are those of the task that says most: panoptic, else instance, else semantic.
    """

    semantic: SemanticSegmentation | None = field(default=None, repr=False)
    instance: Segmentation | None = field(default=None, repr=False)
    panoptic: PanopticSegmentation | None = field(default=None, repr=False)

    @property
    def main(self) -> Segmentation:
        """The result whose regions these are."""
        return next(part for part in (self.panoptic, self.instance, self.semantic) if part is not None)

    def regions(self, least_score: float = SHOWN_SCORE) -> list[Region]:
        """As of the task that says most."""
        return self.main.regions(least_score)

    def arrays(self) -> dict[str, Array]:
        """The arrays of all tasks: those of the task that says most, and the maps of the others."""
        parts = [part for part in (self.semantic, self.panoptic, self.main) if part is not None]
        return {name: values for part in parts for name, values in part.arrays().items()}


@dataclass(kw_only=True, eq=False)
class VideoSegmentation:
    """K objects of a video of T frames of H x W pixels, best first; iterating gives a :class:`Segmentation` a frame.

    Attributes:
        categories: classes of the model.
        labels: [K] int64 class indices.
        scores: [K] float32 in [0, 1].
        tracks: of each object T run lengths of COCO, None where it is not in sight or the frame could not be read.
        size: (H, W).
        length: T.
        frames: gives number and picture [H, W, 3] uint8 of every frame that could be read, as often as it is called.
        unreadable: number of each other frame, with the reason.
        origin: file or folder, for messages.
    """

    categories: Classes = field(repr=False)
    labels: Array
    scores: Array
    tracks: list[list[dict[str, Any] | None]] = field(repr=False)
    size: tuple[int, int]
    length: int
    frames: Callable[[], Iterator[tuple[int, Array]]] = field(repr=False)
    unreadable: dict[int, str] = field(default_factory=dict)
    origin: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    classes = Segmentation.classes
    names = Segmentation.names

    @property
    def masks(self) -> Array:
        """[K, T, H, W] bool: of a long video more than memory may hold, see :attr:`tracks`."""
        frames = [self._masks(number) for number in range(self.length)]
        return np.stack(frames, axis=1) if frames else np.zeros((len(self), 0, *self.size), dtype=bool)

    def _masks(self, frame: int) -> Array:
        masks = np.zeros((len(self), *self.size), dtype=bool)
        for mask, track in zip(masks, self.tracks, strict=True):
            if (run := track[frame]) is not None:
                mask[:] = decode(run)
        return masks

    def __iter__(self) -> Iterator[Segmentation]:
        """Frame by frame, all K objects at their places; frames that could not be read are left out."""
        for number, image in self.frames():
            yield Segmentation(
                image=image,
                categories=self.categories,
                labels=self.labels,
                masks=self._masks(number),
                scores=self.scores,
                origin=f"{self.origin} frame {number}",
                frame=number,
                tracked=True,
            )

    def overlay(self, least_score: float = SHOWN_SCORE) -> Iterator[Image.Image]:
        """The objects on each frame, each in a colour of its own that stays."""
        return (frame.overlay(least_score) for frame in self)

    def counts(self, least_score: float = 0.0) -> list[ClassCount]:
        """As :meth:`Segmentation.counts`."""
        pixels = np.array([sum(area(mask) for mask in track if mask is not None) for track in self.tracks], dtype=int)
        return _counts(self.categories, self.labels, self.scores, pixels, least_score)

    def to_coco(self, video_id: int | str = 1) -> list[dict[str, Any]]:
        """Rows of YouTube-VIS's results: ``video_id``, ``category_id``, ``score`` and run lengths, one a frame."""
        ids = [category.id for category in self.categories.categories]
        return submission_rows(video_id, self.labels.tolist(), self.scores.tolist(), self.tracks, ids)

    def to_polygons(self) -> list[list[list[Array]]]:
        """Outlines of each object in each of the T frames, empty where it is not in sight."""
        return [[[] if mask is None else polygons(decode(mask)) for mask in track] for track in self.tracks]

    def to_detections(self) -> Iterator[Detections]:
        """As :meth:`Segmentation.to_detections`, frame by frame; ``tracker_id`` is the place of an object."""
        return (frame.to_detections() for frame in self)

    def save(self, path: str | os.PathLike[str], *, rate: float = 10.0) -> Path:
        """Write a file; the ending says what.

        Args:
            path: ``.mp4`` (extra fssops[video]), ``.webp`` or ``.gif``: the :meth:`overlay` as a video; ``.json``:
                :meth:`to_coco`; without an ending: a folder of the overlay's frames.
            rate: frames a second of a video.

        Returns:
            the path.

        Raises:
            ValueError: another ending.
            ImportError: ``.mp4`` without the package av.
        """
        from fssops.tasks.video_files import write_video

        target, ending = _target(path, {".mp4", ".webp", ".gif", ".json", ""})
        if ending == ".json":
            target.write_text(json.dumps(self.to_coco()) + "\n", encoding="utf-8")
        elif ending:
            write_video(target, (np.asarray(picture) for picture in self.overlay()), rate)
        else:
            target.mkdir(exist_ok=True)
            for frame in self:
                frame.overlay().save(target / f"{frame.frame:06d}.jpg", quality=92)
        return target


def _counts(
    categories: Classes, labels: Array, scores: Array | None, pixels: Array, least_score: float
) -> list[ClassCount]:
    kept = (pixels > 0) & (True if scores is None else scores >= least_score)
    rows = []
    for label in np.unique(labels[kept]).tolist():
        own = kept & (labels == label)
        mean = None if scores is None else float(scores[own].mean())
        rows.append(ClassCount(categories.categories[label].name, int(own.sum()), int(pixels[own].sum()), mean))
    return rows


def _target(path: str | os.PathLike[str], endings: set[str]) -> tuple[Path, str]:
    """The path, its folder made, and its ending in small letters."""
    target = Path(path)
    ending = target.suffix.lower()
    if ending not in endings:
        known = ", ".join(sorted(ending or "none" for ending in endings))
        raise ValueError(f"save: path must end in one of {known}, got {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target, ending
