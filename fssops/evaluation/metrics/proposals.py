"""What class-agnostic proposals could reach: their recall, the best of them, and the best merge of them.

The merge is greedy: proposals are visited by their overlap with the truth, and one is added where that raises the
overlap of the union. MM-Former bounds itself by such an oracle (Jiao et al., NeurIPS 2022, section 4.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fssops.evaluation.episodes import EpisodeTruth, Outputs, stretched
from fssops.evaluation.metrics.metric import Coverage, EpisodeSetting, Scores, SummedMetric, coverage_of_runs
from fssops.evaluation.pixel_counts import count_pixels, iou, mean_iou
from fssops.labels import IGNORE
from fssops.protocols import FewShotProtocol

RECALL_AT = (0.5, 0.75)
"""Overlaps from which an object counts as found."""

_AT_ONCE = 1 << 22
"""Values of full-size masks that are alive at a time."""

FullSize = Callable[[Tensor, dict[str, Tensor], tuple[int, int]], Tensor]
"""Resizes masks [1, n, h, w] of an image, given its features, to (H, W): the ``full_size`` of MM-Former's models."""


def full_masks(
    full_size: FullSize, features: dict[str, Tensor], size: tuple[int, int], label: Tensor
) -> tuple[Tensor, Tensor]:
    """Proposals of one image at the size of a label, a few at a time.

    Args:
        full_size: of the model.
        features: with "proposals" [1, P, h, w].
        size: at which the model gives its results.
        label: [H, W].

    Returns:
        bool [P, H, W], more probable than not; and soft overlaps [P, 2] with the objects (labels above 0): the sum of
        probabilities on them, and on all pixels that count.
    """
    proposals = features["proposals"]
    label = label.to(proposals.device)
    step = max(1, _AT_ONCE // label.numel())
    valid, objects = (label != IGNORE).float(), ((label > 0) & (label != IGNORE)).float()
    masks, sums = [], []
    with torch.autocast(proposals.device.type, enabled=False):
        for start in range(0, proposals.shape[1], step):
            full = stretched(full_size(proposals[:, start : start + step], features, size)[0].float(), label)
            masks.append(full > 0.5)
            sums.append(full.flatten(1) @ torch.stack([objects, valid]).flatten(1).T)
    return torch.cat(masks), torch.cat(sums)


def best_proposals(
    full_size: FullSize, features: Sequence[dict[str, Tensor]], truth: EpisodeTruth, *, second: bool = False
) -> Outputs:
    """Outputs of a model that gives proposals alone: of each query the one that overlaps best with the truth.

    Args:
        full_size: of the model.
        features: of each query, with "proposals" [1, P, h, w].
        truth: of a 1-way episode; supports are not used.
        second: take the second best by soft overlap, as MM-Former's code reports its first stage.

    Returns:
        "": [2, H, W] at the size of the label, 1 on the proposal and 0 elsewhere, and the reverse before it;
        "proposals": bool [P, H, W].

    Raises:
        ValueError: the episode has several ways.
    """
    if len(truth.classes) != 1:
        raise ValueError(f"best_proposals: episodes must be of one way, got {len(truth.classes)}")
    outputs: Outputs = {"": [], "proposals": []}
    for query, size, label in zip(features, truth.sizes, truth.labels, strict=True):
        masks, sums = full_masks(full_size, query, size, label)
        soft = sums[:, 0] / (sums[:, 1] + float((label == 1).sum()) - sums[:, 0] + 1e-7)
        best = masks[soft.topk(min(2, len(soft))).indices[-1] if second else soft.argmax()]
        outputs[""].append(torch.stack([~best, best]).float())
        outputs["proposals"].append(masks)
    return outputs


def best_merge(masks: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, list[int]]:
    """The greedy union of proposals that overlaps best with an object.

    Args:
        masks: bool [P, H, W].
        target: bool [H, W].
        valid: bool [H, W], pixels that count.

    Returns:
        bool [H, W], and the proposals in it, best first; none where no proposal meets the object.
    """
    overlaps = _overlaps(masks & valid, target & valid)
    union = torch.zeros_like(target)
    reached, taken = 0.0, []
    for index in overlaps.argsort(descending=True, stable=True).tolist():
        if float(overlaps[index]) == 0:
            break
        tried = union | masks[index]
        value = float(_overlaps((tried & valid)[None], target & valid)[0])
        if value > reached:
            union, reached = tried, value
            taken.append(index)
    return union, taken


def _overlaps(masks: Tensor, target: Tensor) -> Tensor:
    """IoU [P] of bool masks [P, H, W] with a bool mask; 0 where both are empty."""
    both = (masks & target).flatten(1).sum(1).double()
    return both / (masks | target).flatten(1).sum(1).clamp(min=1)


class ProposalBounds(SummedMetric):
    """Exact counts of what proposals reach, by class.

    Proposals are chosen query by query, but a class's IoU is that of all its pixels together, which large objects
    decide: another choice may reach a higher one.

    Args:
        runs: number of runs R.
        episodes: of each run.
        classes: ids of the test classes.
        protocol: decides how scores are formed.

    Attributes:
        merged, best: int64 [R, 1 + largest class id, 3] of TP, FP, FN of the best merge and of the best proposal.
        recalled: int64 [R, 1 + len(RECALL_AT)], objects, and those that some proposal reaches.
    """

    name = prediction = "proposals"
    merged: Tensor
    best: Tensor
    recalled: Tensor

    def __init__(self, runs: int, episodes: int, classes: Sequence[int], protocol: FewShotProtocol) -> None:
        super().__init__(
            merged=torch.zeros(runs, 1 + max(classes), 3, dtype=torch.int64),
            best=torch.zeros(runs, 1 + max(classes), 3, dtype=torch.int64),
            recalled=torch.zeros(runs, 1 + len(RECALL_AT), dtype=torch.int64),
        )
        self.episodes, self.classes, self.protocol = episodes, list(classes), protocol

    @classmethod
    def build(cls, setting: EpisodeSetting) -> ProposalBounds:
        return cls(setting.runs, setting.episodes, setting.classes, setting.protocol)

    def add(self, number: int, prediction: Outputs, truth: EpisodeTruth) -> None:
        for masks, label in zip(prediction["proposals"], truth.labels, strict=True):
            self.count(number // self.episodes, truth.classes, masks, label.to(masks.device))

    def count(self, run: int, classes: Tensor, masks: Tensor, label: Tensor) -> None:
        """Count one query.

        Args:
            run: of the episode.
            classes: [N] ids of the ways.
            masks: bool [P, H, W], the proposals.
            label: [H, W], 0 background, n = way n, ``IGNORE``.
        """
        valid = label != IGNORE
        for way, class_id in enumerate(classes.tolist(), start=1):
            target = label == way
            if not bool(target.any()):
                continue
            overlaps = _overlaps(masks & valid, target)
            top = int(overlaps.argmax())
            union, _ = best_merge(masks, target, valid)
            truth = torch.where(valid, target.long(), IGNORE)
            for counts, mask in ((self.best, masks[top]), (self.merged, union)):
                counts[run, class_id] += count_pixels(mask.long(), truth, 1, self.protocol.false_positives)[1]
            self.recalled[run, 0] += 1
            for place, least in enumerate(RECALL_AT, start=1):
                self.recalled[run, place] += bool(overlaps[top] >= least)

    def scores(self) -> ProposalScores:
        merged, best = iou(self.merged[:, self.classes]), iou(self.best[:, self.classes])
        shares = [self.recalled[:, place].double() / self.recalled[:, 0] for place in range(1, 1 + len(RECALL_AT))]
        return ProposalScores(
            merge_miou=float(mean_iou(merged, self.protocol.absent).mean()),
            best_miou=float(mean_iou(best, self.protocol.absent).mean()),
            recall=[float(share.mean()) for share in shares],
            covered=coverage_of_runs(merged),
        )


@dataclass(frozen=True)
class ProposalScores(Scores):
    """Means over runs, in [0, 1]; NaN where nothing could be measured.

    Attributes:
        merge_miou, best_miou: mean IoU over the test classes of the best merge and of the best proposal.
        recall: share of the objects that some proposal reaches, at the overlaps of ``RECALL_AT``.
        covered: coverage of the two means.
    """

    merge_miou: float
    best_miou: float
    recall: list[float]
    covered: Coverage

    def summary(self) -> dict[str, float]:
        recall = {f"recall at {100 * least:.0f}": value for least, value in zip(RECALL_AT, self.recall, strict=True)}
        return {"oracle merge mIoU": self.merge_miou, "best proposal mIoU": self.best_miou, **recall}

    def coverage(self) -> dict[str, Coverage]:
        return dict.fromkeys(("oracle merge mIoU", "best proposal mIoU"), self.covered)
