"""Mean IoU over the test classes, binary IoU, and the IoU of every episode, by the rules of a few-shot protocol."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fssops.evaluation.episodes import EpisodeTruth, Outputs, stretched
from fssops.evaluation.metrics.metric import Coverage, EpisodeSetting, Scores, SummedMetric, coverage_of_runs
from fssops.evaluation.pixel_counts import count_foreground, count_pixels, iou, mean_iou
from fssops.protocols import FewShotProtocol


class FewShotIoU(SummedMetric):
    """Pixels of ways, counted under the ids of their classes.

    Args:
        runs: number of runs R.
        episodes: of each run, E.
        classes: ids of the test classes.
        protocol: decides how scores are formed.
        output: which output of the system; None is its own.

    Attributes:
        classes: [R, 1 + largest class id, 3] int64 of TP, FP, FN; row 0 is the background, others by class id.
        foreground: [R, 2, 3] int64; rows background and any way.
        episodes: [R, E, 3] int64; an episode's ways, added up.
    """

    name = "few-shot"
    prediction = "episode"
    classes: Tensor
    foreground: Tensor
    episodes: Tensor

    def __init__(
        self, runs: int, episodes: int, classes: Sequence[int], protocol: FewShotProtocol, output: str | None = None
    ) -> None:
        super().__init__(
            classes=torch.zeros(runs, 1 + max(classes), 3, dtype=torch.int64),
            foreground=torch.zeros(runs, 2, 3, dtype=torch.int64),
            episodes=torch.zeros(runs, episodes, 3, dtype=torch.int64),
        )
        self.ids, self.protocol, self.output = list(classes), protocol, output

    @classmethod
    def build(cls, setting: EpisodeSetting) -> FewShotIoU:
        return cls(setting.runs, setting.episodes, setting.classes, setting.protocol)

    def add(self, number: int, prediction: Outputs, truth: EpisodeTruth) -> float | None:
        run, index = divmod(number, self.episodes.shape[1])
        ways = len(truth.classes)
        counts = torch.zeros(1 + ways, 3, dtype=torch.int64)
        logits = next(iter(prediction.values())) if self.output is None else prediction[self.output]
        for scores, label in zip(logits, truth.labels, strict=True):
            label = label.to(scores.device)
            labels = stretched(scores.float(), label).argmax(0)
            counts += count_pixels(labels, label, ways, self.protocol.false_positives)
            self.foreground[run] += count_foreground(labels, label)
        self.classes[run, 0] += counts[0]
        self.classes[run].index_add_(0, truth.classes.cpu(), counts[1:])
        self.episodes[run, index] += counts[1:].sum(0)
        value = float(iou(self.episodes[run, index]))
        return None if math.isnan(value) else value

    def scores(self) -> FewShotScores:
        class_iou = iou(self.classes[:, self.ids])
        if self.protocol.binary == "class_sums":
            both = self.classes[:, :1], self.classes[:, 1:].sum(1, keepdim=True)
            binary = iou(both[0]).add(iou(both[1]))[:, 0] / 2
        else:
            binary = iou(self.foreground).mean(1)
        return FewShotScores(
            class_iou=class_iou.tolist(),
            miou=mean_iou(class_iou, self.protocol.absent).tolist(),
            binary_iou=binary.tolist(),
            episode_iou=iou(self.episodes).tolist(),
        )


@dataclass(frozen=True)
class FewShotScores(Scores):
    """IoUs in [0, 1] of R runs; NaN where nothing could be measured.

    Attributes:
        class_iou: [R][classes], in the order of the test classes.
        miou, binary_iou: [R].
        episode_iou: [R][E].
    """

    class_iou: list[list[float]]
    miou: list[float]
    binary_iou: list[float]
    episode_iou: list[list[float]]

    def summary(self) -> dict[str, float]:
        return {name: statistics.fmean(values) for name, values in self.runs().items()}

    def runs(self) -> dict[str, Sequence[float]]:
        return {"mIoU": self.miou, "binary IoU": self.binary_iou}

    def coverage(self) -> dict[str, Coverage]:
        return {"mIoU": coverage_of_runs(torch.tensor(self.class_iou))}
