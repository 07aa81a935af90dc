"""Scores of label maps from one confusion matrix: mean, frequency-weighted and per-class IoU, accuracies.

Formed as in detectron2's ``SemSegEvaluator``: ignored pixels count nowhere, and a class that the truth never shows
takes no part in the means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fssops.evaluation.metrics.metric import ClassSetting, Coverage, Scores, SummedMetric, coverage_of
from fssops.evaluation.scores import mean
from fssops.structures import IGNORE, SegmentationResult
from fssops.truth import Truth


class SemanticIoU(SummedMetric):
    """One confusion matrix over all images.

    Args:
        classes: number of classes C.
        boundary: also count boundaries, which takes longer.

    Attributes:
        confusion: int64 [C, C + 1], rows truth, columns prediction; the last column holds pixels that were given no
            class.
        edges: int64 [C, 2], intersection and union of the boundaries of each class.
    """

    name = prediction = "semantic"
    confusion: Tensor
    edges: Tensor

    def __init__(self, classes: int, *, boundary: bool = False) -> None:
        super().__init__(
            confusion=torch.zeros(classes, classes + 1, dtype=torch.int64),
            edges=torch.zeros(classes, 2, dtype=torch.int64),
        )
        self.classes, self.boundary = classes, boundary

    @classmethod
    def build(cls, setting: ClassSetting) -> SemanticIoU:
        return cls(setting.classes, boundary=setting.boundary)

    def add(self, number: int, prediction: SegmentationResult, truth: Truth) -> float:
        assert prediction.semantic is not None
        table = self.count(prediction.semantic.label_map.cpu().numpy(), truth.semantic())
        hits, shown = np.diagonal(table), table.sum(1)
        union = shown + table[:, : len(table)].sum(0) - hits
        seen = shown > 0
        return round(float((hits[seen] / union[seen]).mean()) if seen.any() else 0.0, 6)

    def count(self, prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Count one image.

        Args:
            prediction: [H, W] class indices; anything outside 0..C-1 is no class.
            truth: [H, W] class indices and 255.

        Returns:
            the confusion matrix of this image alone.

        Raises:
            ValueError: sizes differ, or the truth holds a value outside its classes.
        """
        if prediction.shape != truth.shape:
            raise ValueError(
                f"SemanticIoU.count: prediction must have the truth's size {truth.shape}, got {prediction.shape}"
            )
        valid = truth != IGNORE
        labels = truth[valid].astype(np.int64)
        if labels.size and not 0 <= labels.min() <= labels.max() < self.classes:
            raise ValueError(
                f"SemanticIoU.count: truth must hold 0..{self.classes - 1} and {IGNORE}, "
                f"got {labels.min()}..{labels.max()}"
            )
        given = prediction.astype(np.int64)
        given = np.where((given < 0) | (given >= self.classes), self.classes, given)
        joint = labels * (self.classes + 1) + given[valid]
        table = np.bincount(joint, minlength=self.confusion.numel()).reshape(self.confusion.shape)
        self.confusion += torch.from_numpy(table)
        if self.boundary:
            self.edges += torch.from_numpy(boundary_counts(np.where(valid, given, IGNORE), truth, self.classes))
        return table

    def scores(self) -> SemanticScores:
        table = self.confusion.double().numpy()
        hits = np.diagonal(table).copy()
        truth, predicted = table.sum(1), table[:, : self.classes].sum(0)
        union = truth + predicted - hits
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = np.where((truth > 0) & (union > 0), hits / union, np.nan)
            accuracy = np.where(truth > 0, hits / truth, np.nan)
            edges = self.edges.double().numpy()
            boundary = np.where((truth > 0) & (edges[:, 1] > 0), edges[:, 0] / edges[:, 1], np.nan)
        total = truth.sum()
        weights = truth / total if total else truth
        return SemanticScores(
            miou=mean(iou),
            fwiou=float(np.nansum(iou * weights)) if total else float("nan"),
            pixel_accuracy=float(hits.sum() / total) if total else float("nan"),
            mean_accuracy=mean(accuracy),
            boundary_iou=mean(boundary),
            class_iou=iou.tolist(),
            class_accuracy=accuracy.tolist(),
            class_boundary_iou=boundary.tolist(),
            confusion=self.confusion.tolist(),
        )


@dataclass(frozen=True)
class SemanticScores(Scores):
    """Scores in [0, 1]; NaN where nothing was measured.

    Attributes:
        miou: mean IoU over the classes that the truth shows.
        fwiou: IoU weighted by the classes' share of the pixels.
        pixel_accuracy: share of pixels that are right.
        mean_accuracy: mean over classes of the share of their pixels that is right.
        boundary_iou: mean IoU of class boundaries; NaN unless counted.
        class_iou, class_accuracy, class_boundary_iou: by class.
        confusion: [C][C + 1] pixels, as :class:`SemanticIoU` counts them.
    """

    protocol = "mIoU of detectron2 (one confusion matrix, classes that the truth shows)"
    miou: float
    fwiou: float
    pixel_accuracy: float
    mean_accuracy: float
    boundary_iou: float
    class_iou: list[float]
    class_accuracy: list[float]
    class_boundary_iou: list[float]
    confusion: list[list[int]] = field(repr=False)

    def summary(self) -> dict[str, float]:
        summary = {"mIoU": self.miou, "fwIoU": self.fwiou, "pixel accuracy": self.pixel_accuracy}
        return summary if np.isnan(self.boundary_iou) else {**summary, "boundary IoU": self.boundary_iou}

    def coverage(self) -> dict[str, Coverage]:
        return {"mIoU": coverage_of(self.class_iou), "boundary IoU": coverage_of(self.class_boundary_iou)}

    def columns(self) -> dict[str, Sequence[float]]:
        columns: dict[str, Sequence[float]] = {"IoU": self.class_iou, "accuracy": self.class_accuracy}
        return columns if np.isnan(self.boundary_iou) else {**columns, "boundary IoU": self.class_boundary_iou}

    def as_json(self) -> dict[str, Any]:
        plain = super().as_json()
        del plain["confusion"]  # results say it beside the scores
        return plain


def boundary_width(height: int, width: int, ratio: float = 0.02) -> int:
    """Width in pixels of the boundary of a mask: 2 % of the image's diagonal, at least 1."""
    return max(1, round(ratio * float(np.hypot(height, width))))


def boundary_of(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a mask within ``width`` pixels (chessboard distance) of its outside; the image's border is outside.

    Source: Cheng et al., "Boundary IoU", CVPR 2021, and its code (erosion by 3 x 3, ``width`` times).
    """
    from scipy import ndimage

    eroded = ndimage.minimum_filter(mask.astype(np.uint8), size=2 * width + 1, mode="constant", cval=0)
    return np.asarray(mask & (eroded == 0))


def boundary_counts(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Intersection and union of the boundaries of each class in one image: int64 [C, 2]; ignored pixels left out."""
    valid, width = truth != IGNORE, boundary_width(*truth.shape)
    counts = np.zeros((classes, 2), dtype=np.int64)
    for label in np.union1d(prediction, truth).tolist():
        if 0 <= label < classes:
            edge = boundary_of(truth == label, width) & valid
            other = boundary_of(prediction == label, width) & valid
            counts[label] = (edge & other).sum(), (edge | other).sum()
    return counts


def most_confused(confusion: np.ndarray, names: Sequence[str], count: int = 5) -> list[Mapping[str, object]]:
    """Pairs of classes most often mistaken, by share of the true class's pixels: truth, predicted, share, pixels."""
    table = confusion[:, : len(names)].astype(np.float64)
    totals = confusion.sum(1, keepdims=True)
    share = np.divide(table, totals, out=np.zeros_like(table), where=totals > 0)
    np.fill_diagonal(share, 0.0)
    order = np.argsort(-share, axis=None, kind="stable")[:count]
    pairs: list[Mapping[str, object]] = []
    for place in order.tolist():
        row, column = divmod(place, len(names))
        if share[row, column] > 0:
            pixels = int(confusion[row, column])
            entry = {"truth": names[row], "predicted": names[column], "share": share[row, column], "pixels": pixels}
            pairs.append(entry)
    return pairs
