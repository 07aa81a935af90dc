"""Scores of a base learner: what each number was measured on goes with it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from fssops.evaluation.pixel_counts import iou
from fssops.evaluation.scores import mean, without_nan


@dataclass(frozen=True)
class BaseClassResult:
    """IoUs in [0, 1] of one fold's base classes; NaN for a class that no image shows.

    Attributes:
        model: what was evaluated, for the reader.
        dataset: name and split of the data.
        folds: definition of the folds.
        fold: whose base classes.
        images: number of images.
        novel_images: what the recipe's training does with images that show a novel class: "dropped", or "kept". Novel
            classes are background here either way.
        size: [H, W] at which labels are compared.
        classes: base class id -> name.
        class_iou: in the order of ``classes``.
        background_iou: not part of the mean.
    """

    model: str
    dataset: str
    folds: str
    fold: int
    images: int
    novel_images: str
    size: list[int]
    classes: dict[int, str]
    class_iou: list[float]
    background_iou: float

    @property
    def miou(self) -> float:
        """Mean over the base classes that appear, the background not counted."""
        return mean(self.class_iou)

    def line(self) -> str:
        """One line that can be quoted."""
        absent = sum(math.isnan(value) for value in self.class_iou)
        missing = f", {absent} of which appear in no image" if absent else ""
        return (
            f"base mIoU {100 * self.miou:.2f}  background {100 * self.background_iou:.2f}  [{self.model}; "
            f"{self.dataset}, {self.folds} fold {self.fold}, {len(self.classes)} base classes{missing}, "
            f"{self.images} images, novel classes background, {self.size[0]} x {self.size[1]}, novel images "
            f"{self.novel_images} in training]"
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes null."""
        return without_nan({**asdict(self), "miou": self.miou, "line": self.line()})  # type: ignore[no-any-return]


def score_base_classes(counts: Tensor, **setting: Any) -> BaseClassResult:
    """Scores of counts [1 + C, 3] (TP, FP, FN; background first), summed over all images and processes."""
    values = iou(counts).tolist()
    return BaseClassResult(class_iou=values[1:], background_iou=values[0], **setting)
