"""COCO's average precision of masks, by pycocotools, and the same with boundaries."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fssops.evaluation.scores import mean
from fssops.evaluation.semantic import boundary_of, boundary_width
from fssops.run_lengths import decode, encode

STATISTICS = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
"""What COCO reports, in its order; means over IoU thresholds 0.5, 0.55, .. 0.95 unless named."""


class InstanceRecords:
    """Detections and truth of images, kept as run lengths.

    Records of several processes are joined by :meth:`merge`; the result does not depend on the order, since an image
    is looked at by one process only and pycocotools sorts images.

    Args:
        classes: number of classes.
        limit: detections of a class in an image that count, best first.
    """

    def __init__(self, classes: int, limit: int = 100) -> None:
        self.classes, self.limit = classes, limit
        self.images: dict[int, dict[str, Any]] = {}

    def add(
        self,
        image: int,
        size: tuple[int, int],
        detections: Iterable[tuple[int, float, np.ndarray]],
        truth: Iterable[tuple[int, np.ndarray, bool, float | None]],
    ) -> None:
        """Record one image.

        Args:
            image: number of the image, unique over all processes.
            size: (height, width).
            detections: class index, score and bool mask [H, W] each. An empty mask counts as a wrong detection.
            truth: class index, mask, whether it is a crowd, and the annotated area (None: the mask's) each.

        Raises:
            ValueError: an image twice, or a mask of another size.
        """
        if image in self.images:
            raise ValueError(f"InstanceRecords.add: image must be new, got {image} again")
        found = []
        for label, score, mask in detections:
            if mask.shape != size:
                raise ValueError(f"InstanceRecords.add: masks must be {list(size)}, got {list(mask.shape)}")
            found.append((int(label), float(score), encode(mask)))
        known = []
        for label, mask, crowd, area in truth:
            if mask.shape != size:
                raise ValueError(f"InstanceRecords.add: masks must be {list(size)}, got {list(mask.shape)}")
            known.append((int(label), encode(mask), bool(crowd), float(mask.sum()) if area is None else float(area)))
        self.images[image] = {"size": size, "detections": found, "truth": known}

    def merge(self, others: Iterable[Mapping[int, dict[str, Any]]]) -> None:
        """Take in the ``images`` of other processes."""
        for images in others:
            self.images.update(images)

    def scores(self, *, boundary: bool = False) -> InstanceScores:
        """Form the scores.

        Args:
            boundary: also form boundary AP, which takes several times longer.
        """
        segments = self._evaluate("segm")
        edges = self._evaluate("boundary") if boundary else None
        return InstanceScores(
            **_statistics(segments),
            class_ap=_class_ap(segments, self.classes),
            boundary_ap=float("nan") if edges is None else _statistics(edges)["ap"],
            class_boundary_ap=[] if edges is None else _class_ap(edges, self.classes),
        )

    def _evaluate(self, kind: str) -> Any:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        truth, detections = self._tables()
        with contextlib.redirect_stdout(io.StringIO()):
            reference = COCO()
            reference.dataset = truth
            reference.createIndex()
            found = reference.loadRes(detections) if detections else COCO()
            if not detections:
                found.dataset = {**truth, "annotations": []}
                found.createIndex()
            evaluator = (_boundary_evaluator() if kind == "boundary" else COCOeval)(reference, found, "segm")
            evaluator.params.maxDets = [self.limit]
            evaluator.evaluate()
            evaluator.accumulate()
        return evaluator

    def _tables(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        from pycocotools import mask as coco_mask

        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        detections: list[dict[str, Any]] = []
        for image in sorted(self.images):
            record = self.images[image]
            height, width = record["size"]
            images.append({"id": image, "height": height, "width": width})
            for label, rle, crowd, area in record["truth"]:
                box = coco_mask.toBbox(rle).tolist()
                number = len(annotations) + 1
                row = {"id": number, "image_id": image, "category_id": label, "segmentation": rle, "area": area}
                annotations.append({**row, "bbox": box, "iscrowd": int(crowd)})
            for label, score, rle in record["detections"]:
                detections.append({"image_id": image, "category_id": label, "score": score, "segmentation": rle})
        categories = [{"id": label, "name": str(label)} for label in range(self.classes)]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}, detections


@dataclass(frozen=True)
class InstanceScores:
    """Scores in [0, 1]; NaN where the truth holds nothing of the kind.

    Attributes:
        ap, ap50, ap75, ap_small, ap_medium, ap_large: COCO's.
        class_ap: by class.
        boundary_ap: with the smaller of mask IoU and boundary IoU; NaN unless asked for.
        class_boundary_ap: by class, or empty.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    class_ap: list[float]
    boundary_ap: float
    class_boundary_ap: list[float]

    def summary(self) -> dict[str, float]:
        """The scores that a line shows."""
        found = {"AP": self.ap, "AP50": self.ap50, "AP75": self.ap75}
        return found if np.isnan(self.boundary_ap) else {**found, "boundary AP": self.boundary_ap}


def mean_measured(values: np.ndarray) -> float:
    """Mean of pycocotools' precisions or recalls, which are -1 where the truth holds nothing; NaN of none."""
    return mean(values[values > -1])


def _statistics(evaluator: Any) -> dict[str, float]:
    precision = evaluator.eval["precision"]  # [thresholds, recalls, classes, areas, limits]
    thresholds = evaluator.params.iouThrs

    def ap(area: int, chosen: np.ndarray | slice = slice(None)) -> float:
        return mean_measured(precision[chosen, :, :, area, -1])

    return {
        "ap": ap(0),
        "ap50": ap(0, np.isclose(thresholds, 0.5)),
        "ap75": ap(0, np.isclose(thresholds, 0.75)),
        "ap_small": ap(1),
        "ap_medium": ap(2),
        "ap_large": ap(3),
    }


def _class_ap(evaluator: Any, classes: int) -> list[float]:
    return [mean_measured(evaluator.eval["precision"][:, :, label, 0, -1]) for label in range(classes)]


def _boundary_evaluator() -> type[Any]:
    from pycocotools import mask as coco_mask
    from pycocotools.cocoeval import COCOeval

    class BoundaryEvaluator(COCOeval):  # type: ignore[misc]
        """Takes the smaller of mask IoU and boundary IoU (Cheng et al., "Boundary IoU", CVPR 2021, section 5)."""

        def computeIoU(self, image: int, category: int) -> Any:
            ious = super().computeIoU(image, category)
            if len(ious) == 0:
                return ious
            truth = self._gts[image, category]
            detections = self._dts[image, category]
            order = np.argsort([-d["score"] for d in detections], kind="mergesort")[: self.params.maxDets[-1]]
            edges = [_edge(d["segmentation"]) for d in (*(detections[i] for i in order), *truth)]
            crowds = [int(t["iscrowd"]) for t in truth]
            return np.minimum(ious, coco_mask.iou(edges[: len(order)], edges[len(order) :], crowds))

    return BoundaryEvaluator


def _edge(rle: Mapping[str, Any]) -> dict[str, Any]:
    mask = decode(rle)
    return encode(boundary_of(mask, boundary_width(*mask.shape)))


def coco_results(
    image_id: int | str, labels: Sequence[int], scores: Sequence[float], masks: np.ndarray, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Rows of COCO's results format for the instances of one image.

    Args:
        image_id: as the annotation file calls the image.
        labels: class indices [K].
        scores: [K].
        masks: bool [K, H, W].
        category_ids: id of each class in the annotation file.
    """
    return [
        {"image_id": image_id, "category_id": category_ids[label], "segmentation": encode(mask), "score": float(score)}
        for label, score, mask in zip(labels, scores, masks, strict=True)
    ]
