"""What MSANet's learners reach on their own: the meta learner on novel classes, the base learner on base classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fssops.evaluation.episodes import EpisodeTruth, Outputs, stretched
from fssops.evaluation.metrics.few_shot import FewShotIoU
from fssops.evaluation.metrics.metric import Coverage, EpisodeSetting, Metric, Scores, coverage_of_runs
from fssops.evaluation.pixel_counts import count_pixels, iou, mean_iou


class LearnerIoU(Metric):
    """Counts the outputs "meta" and "base" beside the system's own.

    The meta learner's novel classes are counted by the protocol's rules; the base learner's base classes on the same
    queries, whose novel objects are background there.

    Args:
        setting: with the number of base classes.
    """

    name = prediction = "learners"

    def __init__(self, setting: EpisodeSetting) -> None:
        self.meta = FewShotIoU(setting.runs, setting.episodes, setting.classes, setting.protocol, "meta")
        self.base: Tensor = torch.zeros(setting.runs, 1 + setting.base_classes, 3, dtype=torch.int64)
        self.episodes = setting.episodes

    @classmethod
    def build(cls, setting: EpisodeSetting) -> LearnerIoU:
        return cls(setting)

    def add(self, number: int, prediction: Outputs, truth: EpisodeTruth) -> None:
        if truth.base_labels is None:
            raise ValueError("LearnerIoU.add: episodes must come with base labels, got none")
        self.meta.add(number, prediction, truth)
        for scores, label in zip(prediction["base"], truth.base_labels, strict=True):
            labels = stretched(scores.float(), label).argmax(0)
            self.base[number // self.episodes] += count_pixels(labels, label.to(labels.device), self.base.shape[1] - 1)

    def state(self) -> dict[str, Any]:
        return {"meta": self.meta.state(), "base": self.base.clone()}

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        self.meta.merge([state["meta"] for state in states])
        self.base = torch.stack([state["base"] for state in states]).sum(0)

    def scores(self) -> LearnerScores:
        meta, base = iou(self.meta.classes[:, self.meta.ids]), iou(self.base[:, 1:])
        return LearnerScores(
            meta_miou=float(mean_iou(meta, self.meta.protocol.absent).mean()),
            meta_binary_iou=float(iou(self.meta.foreground).mean()),
            base_miou=float(mean_iou(base, "skip").mean()),
            meta_coverage=coverage_of_runs(meta),
            base_coverage=coverage_of_runs(base),
        )


@dataclass(frozen=True)
class LearnerScores(Scores):
    """Means over runs of IoUs in [0, 1]; NaN where nothing could be measured.

    Attributes:
        meta_miou, meta_binary_iou: of the meta learner.
        base_miou: of the base learner, over the base classes that the queries of a run show.
        meta_coverage, base_coverage: of the two means over classes.
    """

    meta_miou: float
    meta_binary_iou: float
    base_miou: float
    meta_coverage: Coverage
    base_coverage: Coverage

    def summary(self) -> dict[str, float]:
        return {"meta mIoU": self.meta_miou, "meta binary IoU": self.meta_binary_iou, "base mIoU": self.base_miou}

    def coverage(self) -> dict[str, Coverage]:
        return {"meta mIoU": self.meta_coverage, "base mIoU": self.base_coverage}
