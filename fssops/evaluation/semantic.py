"""Scores of label maps from one confusion matrix: mean, frequency-weighted and per-class IoU, accuracies.

Formed as in detectron2's ``SemSegEvaluator``: ignored pixels count nowhere, and a class that the truth never shows
takes no part in the means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fssops.evaluation.scores import mean
from fssops.structures import IGNORE


class SemanticCounts:
    """Integer counts over images; exact under any order of summation.

    Args:
        classes: number of classes C.

    Attributes:
        confusion: int64 [C, C + 1], rows truth, columns prediction; the last column holds pixels that were given no
            class.
        boundary: int64 [C, 2], intersection and union of the boundaries of each class.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.confusion: np.ndarray = np.zeros((classes, classes + 1), dtype=np.int64)
        self.boundary: np.ndarray = np.zeros((classes, 2), dtype=np.int64)

    def add(self, prediction: np.ndarray, truth: np.ndarray, *, boundary: bool = False) -> np.ndarray:
        """Count one image.

        Args:
            prediction: [H, W] class indices; anything outside 0..C-1 is no class.
            truth: [H, W] class indices and 255.
            boundary: also count boundaries, which takes longer.

        Returns:
            the confusion matrix of this image alone.

        Raises:
            ValueError: sizes differ, or the truth holds a value outside its classes.
        """
        if prediction.shape != truth.shape:
            raise ValueError(
                f"SemanticCounts.add: prediction must have the truth's size {truth.shape}, got {prediction.shape}"
            )
        known = truth != IGNORE
        labels = truth[known].astype(np.int64)
        if labels.size and not 0 <= labels.min() <= labels.max() < self.classes:
            raise ValueError(
                f"SemanticCounts.add: truth must hold 0..{self.classes - 1} and {IGNORE}, "
                f"got {labels.min()}..{labels.max()}"
            )
        given = prediction.astype(np.int64)
        given = np.where((given < 0) | (given >= self.classes), self.classes, given)
        joint = labels * (self.classes + 1) + given[known]
        table = np.bincount(joint, minlength=self.confusion.size).reshape(self.confusion.shape)
        self.confusion += table
        if boundary:
            self.boundary += boundary_counts(np.where(known, given, IGNORE), truth, self.classes)
        return table

    def flat(self) -> np.ndarray:
        """All counts as one vector, to be summed over processes."""
        return np.concatenate([self.confusion.ravel(), self.boundary.ravel()])

    def take(self, flat: np.ndarray) -> None:
        """Replace the counts by those of :meth:`flat`."""
        self.confusion = flat[: self.confusion.size].reshape(self.confusion.shape).astype(np.int64)
        self.boundary = flat[self.confusion.size :].reshape(self.boundary.shape).astype(np.int64)

    def scores(self) -> SemanticScores:
        """Form the scores."""
        table = self.confusion.astype(np.float64)
        hits = np.diagonal(table).copy()
        truth, predicted = table.sum(1), table[:, : self.classes].sum(0)
        union = truth + predicted - hits
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = np.where((truth > 0) & (union > 0), hits / union, np.nan)
            accuracy = np.where(truth > 0, hits / truth, np.nan)
            edges = self.boundary.astype(np.float64)
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
        )


@dataclass(frozen=True)
class SemanticScores:
    """Scores in [0, 1]; NaN where nothing was measured.

    Attributes:
        miou: mean IoU over the classes that the truth shows.
        fwiou: IoU weighted by the classes' share of the pixels.
        pixel_accuracy: share of pixels that are right.
        mean_accuracy: mean over classes of the share of their pixels that is right.
        boundary_iou: mean IoU of class boundaries; NaN unless counted.
        class_iou, class_accuracy, class_boundary_iou: by class.
    """

    miou: float
    fwiou: float
    pixel_accuracy: float
    mean_accuracy: float
    boundary_iou: float
    class_iou: list[float]
    class_accuracy: list[float]
    class_boundary_iou: list[float]

    def summary(self) -> dict[str, float]:
        """The scores that a line shows."""
        found = {"mIoU": self.miou, "fwIoU": self.fwiou, "pixel accuracy": self.pixel_accuracy}
        return found if np.isnan(self.boundary_iou) else {**found, "boundary IoU": self.boundary_iou}


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
    known, width = truth != IGNORE, boundary_width(*truth.shape)
    counts = np.zeros((classes, 2), dtype=np.int64)
    for label in np.union1d(prediction, truth).tolist():
        if 0 <= label < classes:
            edge = boundary_of(truth == label, width) & known
            other = boundary_of(prediction == label, width) & known
            counts[label] = (edge & other).sum(), (edge | other).sum()
    return counts


def most_confused(confusion: np.ndarray, names: Sequence[str], count: int = 5) -> list[Mapping[str, object]]:
    """Pairs of classes most often mistaken, by share of the true class's pixels: truth, predicted, share, pixels."""
    table = confusion[:, : len(names)].astype(np.float64)
    totals = confusion.sum(1, keepdims=True)
    share = np.divide(table, totals, out=np.zeros_like(table), where=totals > 0)
    np.fill_diagonal(share, 0.0)
    order = np.argsort(-share, axis=None, kind="stable")[:count]
    found: list[Mapping[str, object]] = []
    for place in order.tolist():
        row, column = divmod(place, len(names))
        if share[row, column] > 0:
            pixels = int(confusion[row, column])
            entry = {"truth": names[row], "predicted": names[column], "share": share[row, column], "pixels": pixels}
            found.append(entry)
    return found
