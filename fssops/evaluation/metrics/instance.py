"""COCO's average precision of masks, by pycocotools, and the same with boundaries."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fssops.evaluation.metrics.metric import ClassSetting, Coverage, RecordedMetric, Scores, coverage_of
from fssops.evaluation.metrics.semantic import boundary_of, boundary_width
from fssops.evaluation.scores import mean
from fssops.run_lengths import decode, encode
from fssops.structures import SegmentationResult
from fssops.truth import Truth


class InstancePrecision(RecordedMetric):
    """Detections and truth of images, kept as run lengths.

    The scores do not depend on the order of the images, since pycocotools sorts them.

    Args:
        classes: number of classes.
        limit: detections of a class in an image that count, best first.
        things: indices of the classes whose segments are objects, where the truth is a panoptic map.
        boundary: also form boundary AP, which takes several times longer.
    """

    name = prediction = "instance"

    def __init__(self, classes: int, limit: int = 100, *, things: Sequence[int] = (), boundary: bool = False) -> None:
        super().__init__()
        self.classes, self.limit, self.things, self.boundary = classes, limit, things, boundary

    @classmethod
    def build(cls, setting: ClassSetting) -> InstancePrecision:
        return cls(setting.classes, setting.detections, things=setting.things, boundary=setting.boundary)

    def add(self, number: int, prediction: SegmentationResult, truth: Truth) -> float:
        result = prediction.instance
        assert result is not None
        masks = result.masks.cpu().numpy()
        detections = list(zip(result.labels.tolist(), result.scores.tolist(), masks, strict=True))
        height, width = truth.height, truth.width
        objects = [(o.label, o.mask(height, width), o.crowd, o.area) for o in truth.instances(self.things)]
        self.record(number, (height, width), detections, objects)
        return round(_overlap(detections, [(label, mask) for label, mask, crowd, _ in objects if not crowd]), 6)

    def record(
        self,
        number: int,
        size: tuple[int, int],
        detections: Iterable[tuple[int, float, np.ndarray]],
        truth: Iterable[tuple[int, np.ndarray, bool, float | None]],
    ) -> None:
        """Record one image.

        Args:
            number: of the image, unique over all processes.
            size: (height, width).
            detections: class index, score and bool mask [H, W] each. An empty mask counts as a wrong detection.
            truth: class index, mask, whether it is a crowd, and the annotated area (None: the mask's) each.

        Raises:
            ValueError: an image twice, or a mask of another size.
        """
        if number in self.records:
            raise ValueError(f"InstancePrecision.record: image must be new, got {number} again")
        detected = [(int(label), float(score), _encoded(mask, size)) for label, score, mask in detections]
        objects = [
            (int(label), _encoded(mask, size), bool(crowd), float(mask.sum()) if area is None else float(area))
            for label, mask, crowd, area in truth
        ]
        self.records[number] = {"size": size, "detections": detected, "truth": objects}

    def scores(self) -> InstanceScores:
        segments = self._evaluate("segm")
        edges = self._evaluate("boundary") if self.boundary else None
        return InstanceScores(
            **average_precisions(segments, self.classes),
            boundary_ap=float("nan") if edges is None else average_precisions(edges, self.classes)["ap"],
            class_boundary_ap=[] if edges is None else average_precisions(edges, self.classes)["class_ap"],
        )

    def _evaluate(self, kind: str) -> Any:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        truth, detections = self._tables()
        with contextlib.redirect_stdout(io.StringIO()):
            reference = COCO()
            reference.dataset = truth
            reference.createIndex()
            results = reference.loadRes(detections) if detections else COCO()
            if not detections:
                results.dataset = {**truth, "annotations": []}
                results.createIndex()
            evaluator = (_boundary_evaluator() if kind == "boundary" else COCOeval)(reference, results, "segm")
            evaluator.params.maxDets = [self.limit]
            evaluator.evaluate()
            evaluator.accumulate()
        return evaluator

    def _tables(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        from pycocotools import mask as coco_mask

        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        detections: list[dict[str, Any]] = []
        for image in sorted(self.records):
            record = self.records[image]
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
class AveragePrecisions(Scores):
    """Scores in [0, 1], each a mean over the classes of which the truth holds an object of the kind; NaN of none.

    Attributes:
        ap, ap50, ap75: mean average precision over IoU thresholds 0.5, 0.55, .. 0.95, and at one.
        ap_small, ap_medium, ap_large: of objects by their area.
        class_ap: by class.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    class_ap: list[float]

    def summary(self) -> dict[str, float]:
        return {"AP": self.ap, "AP50": self.ap50, "AP75": self.ap75}

    def coverage(self) -> dict[str, Coverage]:
        return dict.fromkeys(self.summary(), coverage_of(self.class_ap))

    def columns(self) -> dict[str, Sequence[float]]:
        return {"AP": self.class_ap}


@dataclass(frozen=True)
class InstanceScores(AveragePrecisions):
    """COCO's scores; see :class:`AveragePrecisions`.

    Attributes:
        boundary_ap: with the smaller of mask IoU and boundary IoU; NaN unless asked for.
        class_boundary_ap: by class, or empty.
    """

    protocol = "mask AP of pycocotools"
    boundary_ap: float
    class_boundary_ap: list[float]

    def summary(self) -> dict[str, float]:
        return super().summary() | ({} if np.isnan(self.boundary_ap) else {"boundary AP": self.boundary_ap})

    def columns(self) -> dict[str, Sequence[float]]:
        return super().columns() | ({"boundary AP": self.class_boundary_ap} if self.class_boundary_ap else {})


def mean_measured(values: np.ndarray) -> float:
    """Mean of pycocotools' precisions or recalls, which are -1 where the truth holds nothing; NaN of none."""
    return mean(values[values > -1])


def average_precisions(evaluator: Any, classes: int) -> dict[str, Any]:
    """What an evaluator of pycocotools' form has accumulated: "ap", "ap50", .. "ap_large", and "class_ap" by class."""
    precision = evaluator.eval["precision"]  # [thresholds, recalls, classes, areas, limits]
    thresholds = evaluator.params.iouThrs

    def ap(area: int = 0, at: np.ndarray | slice = slice(None)) -> float:
        return mean_measured(precision[at, :, :, area, -1])

    return {
        "ap": ap(),
        "ap50": ap(at=np.isclose(thresholds, 0.5)),
        "ap75": ap(at=np.isclose(thresholds, 0.75)),
        "ap_small": ap(1),
        "ap_medium": ap(2),
        "ap_large": ap(3),
        "class_ap": [mean_measured(precision[:, :, label, 0, -1]) for label in range(classes)],
    }


def _encoded(mask: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    if mask.shape != size:
        raise ValueError(f"InstancePrecision.record: masks must be {list(size)}, got {list(mask.shape)}")
    return encode(mask)


def _overlap(detections: Sequence[tuple[int, float, np.ndarray]], objects: Sequence[tuple[int, np.ndarray]]) -> float:
    """Mean over objects of the best IoU with a detection of their class, weighted by its score.

    Every fourth row and column is enough to put images in order for pictures.
    """
    if not detections or not objects:
        return 0.0
    detected = np.stack([mask[::4, ::4].ravel() for _, _, mask in detections]).astype(np.float32)
    true = np.stack([mask[::4, ::4].ravel() for _, mask in objects]).astype(np.float32)
    shared = true @ detected.T
    union = true.sum(1)[:, None] + detected.sum(1) - shared
    same = np.array([label for label, _ in objects])[:, None] == np.array([label for label, _, _ in detections])
    scores = np.array([score for _, score, _ in detections])
    return float((same * scores * shared / np.maximum(union, 1.0)).max(1).mean())


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
