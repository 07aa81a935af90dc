"""Average precision and recall of video instances, as YouTube-VIS defines them.

A detection and an object are compared through the whole video: IoU = sum over frames of the intersections over the sum
of the unions, a frame without a mask counting as an empty one. Matching and averaging are COCO's, done by pycocotools.
What differs from COCO: an object's size is its mean area over the frames in which it has any, small below 128^2, large
above 256^2.

Source: youtubevos/cocoapi (``ytvoseval.py``); tests/evaluation/test_video_precision.py holds that the scores are equal.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fssops.evaluation.metrics.instance import AveragePrecisions, average_precisions, mean_measured
from fssops.evaluation.metrics.metric import ClassSetting, RecordedMetric
from fssops.run_lengths import encode
from fssops.structures import InstanceResult
from fssops.truth import VideoTruth

AREAS = ((0.0, 1e10), (0.0, 128.0**2), (128.0**2, 256.0**2), (256.0**2, 1e10))
"""Ranges of mean area: all, small, medium, large."""

LIMITS = (1, 10, 100)
"""Detections of a class in a video that count, best first."""

Masks = Sequence[Mapping[str, Any] | None]
"""One run-length encoding a frame (:func:`fssops.run_lengths.encode`), or None."""


class VideoPrecision(RecordedMetric):
    """Detections and truth of videos, kept as run lengths.

    The scores do not depend on the order of the videos, since pycocotools sorts them by their ids.

    Args:
        classes: number of classes.
    """

    name = prediction = "video instances"

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    @classmethod
    def build(cls, setting: ClassSetting) -> VideoPrecision:
        return cls(setting.classes)

    def add(self, number: int, prediction: InstanceResult, truth: VideoTruth) -> float:
        """Count one video; returns the mean over objects of the best score times overlap of a detection.

        Args:
            number: of the video.
            prediction: with one run length a frame, or None, in place of the masks of every object.
            truth: of the video.
        """
        tracks: Any = prediction.masks
        detections = list(zip(prediction.labels.tolist(), prediction.scores.tolist(), tracks, strict=True))
        objects = true_objects(truth)
        self.record(number, truth.frames, detections, objects, identifier=truth.id)
        best = []
        for label, masks, crowd, _ in objects:
            if not crowd:
                same = [(score, detected) for of_class, score, detected in detections if of_class == label]
                best.append(max((score * video_iou(detected, masks) for score, detected in same), default=0.0))
        return round(float(np.mean(best)), 6) if best else 0.0

    def record(
        self,
        number: int,
        frames: int,
        detections: Iterable[tuple[int, float, Masks]],
        truth: Iterable[tuple[int, Masks, bool, Sequence[float | None]]],
        identifier: int | str = "",
    ) -> None:
        """Record one video.

        Args:
            number: of the video, unique over all processes.
            frames: number of frames.
            detections: class index, score and masks each.
            truth: class index, masks, whether it is a crowd, and the annotated areas of the frames (empty: what the
                masks cover) each.
            identifier: how result files call it; ``number`` where that is no number.

        Raises:
            ValueError: a video twice, another number of masks than frames, or masks of several sizes.
        """
        identifier = identifier if isinstance(identifier, int) else number
        if number in self.records:
            raise ValueError(f"VideoPrecision.record: video must be new, got {number} again")
        detected = [(int(label), float(score), _checked(masks, frames)) for label, score, masks in detections]
        objects = []
        for label, masks, crowd, areas in truth:
            area = _mean_area(masks) if not any(areas) else float(np.mean([a for a in areas if a]))
            objects.append((int(label), _checked(masks, frames), bool(crowd), area))
        every = [masks for _, _, masks in detected] + [masks for _, masks, _, _ in objects]
        sizes = {tuple(mask["size"]) for masks in every for mask in masks if mask}
        if len(sizes) > 1:
            raise ValueError(
                f"VideoPrecision.record: masks must be of one size, got {sorted(sizes)} in video {identifier}"
            )
        self.records[number] = {"id": identifier, "detections": detected, "truth": objects}

    def by_id(self) -> list[dict[str, Any]]:
        """The records by ascending id: "id", "detections" (class, score, masks) and "truth"."""
        return sorted(self.records.values(), key=lambda record: int(record["id"]))

    def scores(self) -> VideoScores:
        evaluator = self._evaluated()
        recall = evaluator.eval["recall"]

        def ar(area: int = 0, limit: int = -1) -> float:
            return mean_measured(recall[:, :, area, limit])

        return VideoScores(
            **average_precisions(evaluator, self.classes),
            ar1=ar(limit=0),
            ar10=ar(limit=1),
            ar100=ar(),
            ar_small=ar(1),
            ar_medium=ar(2),
            ar_large=ar(3),
        )

    def _evaluated(self) -> Any:
        from pycocotools.coco import COCO

        tables = self._tables()
        with contextlib.redirect_stdout(io.StringIO()):
            reference, results = COCO(), COCO()
            for table, rows in ((reference, tables["truth"]), (results, tables["detections"])):
                table.dataset = {**tables["shared"], "annotations": rows}
                table.createIndex()
            # "bbox" keeps pycocotools from drawing anything; what is compared is decided by the evaluator.
            evaluator = _evaluator_class()(reference, results, "bbox")
            evaluator.params.maxDets = list(LIMITS)
            evaluator.params.areaRng = [list(limits) for limits in AREAS]
            evaluator.evaluate()
            evaluator.accumulate()
        return evaluator

    def _tables(self) -> dict[str, Any]:
        truth: list[dict[str, Any]] = []
        detections: list[dict[str, Any]] = []
        for record in self.by_id():
            video = record["id"]
            for label, masks, crowd, area in record["truth"]:
                row = {"id": len(truth) + 1, "image_id": video, "category_id": label, "masks": masks}
                truth.append({**row, "area": area, "iscrowd": int(crowd)})
            for label, score, masks in record["detections"]:
                row = {"id": len(detections) + 1, "image_id": video, "category_id": label, "masks": masks}
                detections.append({**row, "area": _mean_area(masks), "iscrowd": 0, "score": score})
        categories = [{"id": label, "name": str(label)} for label in range(self.classes)]
        videos = [{"id": record["id"]} for record in self.by_id()]
        return {"shared": {"images": videos, "categories": categories}, "truth": truth, "detections": detections}


@dataclass(frozen=True)
class VideoScores(AveragePrecisions):
    """YouTube-VIS's scores; see :class:`AveragePrecisions`. An object's area is its mean over frames.

    Attributes:
        ar1, ar10, ar100: mean recall with at most so many detections a video.
        ar_small, ar_medium, ar_large: of objects by their mean area.
    """

    protocol = "video mask AP of YouTube-VIS (IoU over all frames of a video)"
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float

    def summary(self) -> dict[str, float]:
        return {**super().summary(), "AR1": self.ar1, "AR10": self.ar10}


def true_objects(truth: VideoTruth) -> list[tuple[int, Masks, bool, list[float | None]]]:
    """Class, run lengths, crowd and areas of the objects of a video; none where the data set has no truth."""
    objects: list[tuple[int, Masks, bool, list[float | None]]] = []
    for track in truth.tracks or ():
        masks = [track.mask(frame, truth.height, truth.width) for frame in range(truth.frames)]
        runs = [None if mask is None else encode(mask) for mask in masks]
        objects.append((track.label, runs, track.crowd, track.areas))
    return objects


def video_iou(first: Masks, second: Masks) -> float:
    """Intersection over union of two objects through all frames; 0 where neither is seen anywhere."""
    from pycocotools import mask as coco_mask

    shared = union = 0
    for a, b in zip(first, second, strict=True):
        area_a = int(coco_mask.area(a)) if a else 0
        area_b = int(coco_mask.area(b)) if b else 0
        both = int(coco_mask.area(coco_mask.merge([a, b], True))) if area_a and area_b else 0
        shared += both
        union += area_a + area_b - both
    return shared / union if union else 0.0


def _evaluator_class() -> type[Any]:
    from pycocotools.cocoeval import COCOeval

    class VideoEvaluator(COCOeval):  # type: ignore[misc]
        """COCO's matching on overlaps through time."""

        def computeIoU(self, video: int, category: int) -> Any:
            truth, detections = self._gts[video, category], self._dts[video, category]
            if not truth and not detections:
                return []
            order = np.argsort([-d["score"] for d in detections], kind="mergesort")[: self.params.maxDets[-1]]
            overlaps = np.zeros((len(order), len(truth)))
            for row, place in enumerate(order):
                for column, true in enumerate(truth):
                    overlaps[row, column] = video_iou(detections[place]["masks"], true["masks"])
            return overlaps

    return VideoEvaluator


def _mean_area(masks: Masks) -> float:
    """Mean over the frames in which there is anything, in pixels."""
    from pycocotools import mask as coco_mask

    areas = [area for mask in masks if mask and (area := int(coco_mask.area(mask)))]
    return float(np.mean(areas)) if areas else 0.0


def _checked(masks: Masks, frames: int) -> list[Mapping[str, Any] | None]:
    if len(masks) != frames:
        raise ValueError(f"VideoPrecision.record: masks must be one a frame ({frames}), got {len(masks)}")
    return list(masks)
