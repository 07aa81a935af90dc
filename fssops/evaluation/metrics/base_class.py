"""Mean IoU of the base classes of a fold, as a base learner segments them; the background is not part of the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fssops.evaluation.metrics.metric import ClassSetting, Coverage, Scores, SummedMetric, coverage_of
from fssops.evaluation.pixel_counts import count_pixels, iou
from fssops.evaluation.scores import mean


class BaseClassIoU(SummedMetric):
    """Pixels of the background and of every base class.

    Args:
        classes: number of base classes C.

    Attributes:
        counts: [1 + C, 3] int64 of TP, FP, FN; row 0 is the background.
    """

    name = prediction = "base classes"
    counts: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__(counts=torch.zeros(1 + classes, 3, dtype=torch.int64))

    @classmethod
    def build(cls, setting: ClassSetting) -> BaseClassIoU:
        return cls(setting.classes)

    def add(self, number: int, prediction: Tensor, truth: Tensor) -> float | None:
        """Count one image by its label maps [H, W]; returns the share of its pixels that is right."""
        counts = count_pixels(prediction, truth, len(self.counts) - 1)
        self.counts += counts
        pixels = int(counts[:, 0].sum() + counts[:, 2].sum())
        return float(counts[:, 0].sum()) / pixels if pixels else None

    def scores(self) -> BaseClassScores:
        values = iou(self.counts).tolist()
        return BaseClassScores(class_iou=values[1:], background_iou=values[0])


@dataclass(frozen=True)
class BaseClassScores(Scores):
    """IoUs in [0, 1]; NaN for a class that no image shows.

    Attributes:
        class_iou: of the base classes.
        background_iou: not part of the mean.
    """

    class_iou: list[float]
    background_iou: float

    @property
    def miou(self) -> float:
        """Mean over the base classes that appear."""
        return mean(self.class_iou)

    def summary(self) -> dict[str, float]:
        return {"base mIoU": self.miou, "background": self.background_iou}

    def coverage(self) -> dict[str, Coverage]:
        return {"base mIoU": coverage_of(self.class_iou)}

    def columns(self) -> dict[str, Sequence[float]]:
        return {"IoU": self.class_iou}
