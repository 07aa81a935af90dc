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

from fssops.evaluation.instance import mean_measured

AREAS = ((0.0, 1e10), (0.0, 128.0**2), (128.0**2, 256.0**2), (256.0**2, 1e10))
"""Ranges of mean area: all, small, medium, large."""

LIMITS = (1, 10, 100)
"""Detections of a class in a video that count, best first."""

Masks = Sequence[Mapping[str, Any] | None]
"""One run-length encoding a frame (:func:`fssops.run_lengths.encode`), or None."""


class VideoRecords:
    """Detections and truth of videos, kept as run lengths.

    Records of several processes are joined by :meth:`merge`; the result does not depend on the order, since a video is
    looked at by one process only and pycocotools sorts videos.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.videos: dict[int, dict[str, Any]] = {}

    def add(
        self,
        video: int,
        frames: int,
        detections: Iterable[tuple[int, float, Masks]],
        truth: Iterable[tuple[int, Masks, bool, Sequence[float | None]]],
    ) -> None:
        """Record one video.

        Args:
            video: id of the video, unique over all processes.
            frames: number of frames.
            detections: class index, score and masks each.
            truth: class index, masks, whether it is a crowd, and the annotated areas of the frames (empty: what the
                masks cover) each.

        Raises:
            ValueError: a video twice, another number of masks than frames, or masks of several sizes.
        """
        if video in self.videos:
            raise ValueError(f"VideoRecords.add: video must be new, got {video} again")
        found = [(int(label), float(score), _checked(masks, frames)) for label, score, masks in detections]
        known = []
        for label, masks, crowd, areas in truth:
            area = _mean_area(masks) if not any(areas) else float(np.mean([a for a in areas if a]))
            known.append((int(label), _checked(masks, frames), bool(crowd), area))
        every = [masks for _, _, masks in found] + [masks for _, masks, _, _ in known]
        sizes = {tuple(mask["size"]) for masks in every for mask in masks if mask}
        if len(sizes) > 1:
            raise ValueError(f"VideoRecords.add: masks must be of one size, got {sorted(sizes)} in video {video}")
        self.videos[video] = {"detections": found, "truth": known}

    def merge(self, others: Iterable[Mapping[int, dict[str, Any]]]) -> None:
        """Take in the ``videos`` of other processes."""
        for videos in others:
            self.videos.update(videos)

    def scores(self) -> VideoScores:
        """Form the scores."""
        evaluator = self._evaluated()
        precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
        thresholds = evaluator.params.iouThrs

        def ap(area: int = 0, chosen: np.ndarray | slice = slice(None)) -> float:
            return mean_measured(precision[chosen, :, :, area, -1])

        def ar(area: int = 0, limit: int = -1) -> float:
            return mean_measured(recall[:, :, area, limit])

        return VideoScores(
            ap=ap(),
            ap50=ap(chosen=np.isclose(thresholds, 0.5)),
            ap75=ap(chosen=np.isclose(thresholds, 0.75)),
            ap_small=ap(1),
            ap_medium=ap(2),
            ap_large=ap(3),
            ar1=ar(limit=0),
            ar10=ar(limit=1),
            ar100=ar(),
            ar_small=ar(1),
            ar_medium=ar(2),
            ar_large=ar(3),
            class_ap=[mean_measured(precision[:, :, label, 0, -1]) for label in range(self.classes)],
        )

    def _evaluated(self) -> Any:
        from pycocotools.coco import COCO

        tables = self._tables()
        with contextlib.redirect_stdout(io.StringIO()):
            reference, found = COCO(), COCO()
            for table, rows in ((reference, tables["truth"]), (found, tables["detections"])):
                table.dataset = {**tables["shared"], "annotations": rows}
                table.createIndex()
            # "bbox" keeps pycocotools from drawing anything; what is compared is decided by the evaluator.
            evaluator = _evaluator_class()(reference, found, "bbox")
            evaluator.params.maxDets = list(LIMITS)
            evaluator.params.areaRng = [list(limits) for limits in AREAS]
            evaluator.evaluate()
            evaluator.accumulate()
        return evaluator

    def _tables(self) -> dict[str, Any]:
        truth: list[dict[str, Any]] = []
        detections: list[dict[str, Any]] = []
        for video in sorted(self.videos):
            record = self.videos[video]
            for label, masks, crowd, area in record["truth"]:
                row = {"id": len(truth) + 1, "image_id": video, "category_id": label, "masks": masks}
                truth.append({**row, "area": area, "iscrowd": int(crowd)})
            for label, score, masks in record["detections"]:
                row = {"id": len(detections) + 1, "image_id": video, "category_id": label, "masks": masks}
                detections.append({**row, "area": _mean_area(masks), "iscrowd": 0, "score": score})
        categories = [{"id": label, "name": str(label)} for label in range(self.classes)]
        videos = [{"id": video} for video in sorted(self.videos)]
        return {"shared": {"images": videos, "categories": categories}, "truth": truth, "detections": detections}


@dataclass(frozen=True)
class VideoScores:
    """Scores in [0, 1]; NaN where the truth holds nothing of the kind.

    Attributes:
        ap, ap50, ap75: mean average precision over IoU thresholds 0.5, 0.55, .. 0.95, and at one.
        ap_small, ap_medium, ap_large: of objects by their mean area.
        ar1, ar10, ar100: mean recall with at most so many detections a video.
        ar_small, ar_medium, ar_large: of objects by their mean area.
        class_ap: by class.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    class_ap: list[float]

    def summary(self) -> dict[str, float]:
        """The scores that a line shows."""
        return {"AP": self.ap, "AP50": self.ap50, "AP75": self.ap75, "AR1": self.ar1, "AR10": self.ar10}


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
            truth, found = self._gts[video, category], self._dts[video, category]
            if not truth and not found:
                return []
            order = np.argsort([-d["score"] for d in found], kind="mergesort")[: self.params.maxDets[-1]]
            overlaps = np.zeros((len(order), len(truth)))
            for row, place in enumerate(order):
                for column, known in enumerate(truth):
                    overlaps[row, column] = video_iou(found[place]["masks"], known["masks"])
            return overlaps

    return VideoEvaluator


def _mean_area(masks: Masks) -> float:
    """Mean over the frames in which there is anything, in pixels."""
    from pycocotools import mask as coco_mask

    areas = [area for mask in masks if mask and (area := int(coco_mask.area(mask)))]
    return float(np.mean(areas)) if areas else 0.0


def _checked(masks: Masks, frames: int) -> list[Mapping[str, Any] | None]:
    if len(masks) != frames:
        raise ValueError(f"VideoRecords.add: masks must be one a frame ({frames}), got {len(masks)}")
    return list(masks)
