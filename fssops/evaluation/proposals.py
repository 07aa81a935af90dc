"""What class-agnostic proposals could reach: their recall, the best of them, and the best merge of them.

The merge is greedy: proposals are visited by their overlap with the truth, and one is added where that raises the
overlap of the union. MM-Former bounds itself by such an oracle (Zhang et al., NeurIPS 2022, section 4.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from fssops.evaluation.feature_cache import FeatureCache
from fssops.evaluation.fewshot import (
    EpisodeSet,
    EvaluationCounts,
    Ledger,
    OriginalLabels,
    Progress,
    Segmenter,
    compared_labels,
    labelled_episodes,
    stretched,
)
from fssops.evaluation.pixel_counts import Absent, FalsePositives, count_foreground, count_pixels, iou, mean_iou, summed
from fssops.evaluation.protocols import FewShotProtocol
from fssops.structures import IGNORE, Episode

RECALL_AT = (0.5, 0.75)
"""Overlaps from which an object counts as found."""

_AT_ONCE = 1 << 22
"""Values of full-size masks that are alive at a time."""


class ProposalModel(Protocol):
    """A model whose ``encode`` gives "proposals" [n, P, h, w], probabilities."""

    def encode(self, images: Tensor) -> dict[str, Tensor]: ...

    def full_size(self, masks: Tensor, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor: ...


class ProposalMatcher(Segmenter, Protocol):
    """A few-shot model that merges proposals."""

    def full_size(self, masks: Tensor, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor: ...


def full_masks(model: Any, features: dict[str, Tensor], size: tuple[int, int], label: Tensor) -> tuple[Tensor, Tensor]:
    """Proposals of one image at the size of a label, a few at a time.

    Args:
        model: of the features.
        features: with "proposals" [1, P, h, w].
        size: at which the model gives its results.
        label: [H, W].

    Returns:
        bool [P, H, W], more probable than not; and soft overlaps [P, 2] with the objects (labels above 0): the sum of
        probabilities on them, and on all pixels that count.
    """
    proposals = features["proposals"]
    step = max(1, _AT_ONCE // label.numel())
    valid, objects = (label != IGNORE).float(), ((label > 0) & (label != IGNORE)).float()
    masks, sums = [], []
    for start in range(0, proposals.shape[1], step):
        full = stretched(model.full_size(proposals[:, start : start + step], features, size)[0].float(), label)
        masks.append(full > 0.5)
        sums.append(full.flatten(1) @ torch.stack([objects, valid]).flatten(1).T)
    return torch.cat(masks), torch.cat(sums)


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


class ProposalTally:
    """Exact counts of what proposals reach, by class.

    Proposals are chosen query by query, but a class's IoU is that of all its pixels together, which large objects
    decide: another choice may reach a higher one.

    Args:
        runs: number of runs.
        classes: ids of the test classes.
    """

    def __init__(self, runs: int, classes: Sequence[int], false_positives: FalsePositives) -> None:
        self.classes, self.false_positives = list(classes), false_positives
        size = (runs, 1 + max(classes), 3)
        self.merged, self.best = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64)
        self.found = torch.zeros(runs, 1 + len(RECALL_AT), dtype=torch.int64)  # objects, and those found

    def add(self, run: int, classes: Tensor, masks: Tensor, label: Tensor) -> None:
        """Count one query: proposals bool [P, H, W] and its label [H, W], 0 background, n = way n, ``IGNORE``."""
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
                counts[run, class_id] += count_pixels(mask.long(), truth, 1, self.false_positives)[1]
            self.found[run, 0] += 1
            for place, least in enumerate(RECALL_AT, start=1):
                self.found[run, place] += bool(overlaps[top] >= least)

    def tensors(self) -> list[Tensor]:
        """The counts themselves, added to in place."""
        return [self.merged, self.best, self.found]

    def scores(self, reduce: Callable[[Tensor], Tensor], absent: Absent) -> dict[str, float]:
        """Means over runs; ``reduce`` adds one int64 vector over all processes."""
        merged, best, found = summed(self.tensors(), reduce)
        scores = {
            "oracle merge mIoU": float(mean_iou(iou(merged[:, self.classes]), absent).mean()),
            "best proposal mIoU": float(mean_iou(iou(best[:, self.classes]), absent).mean()),
        }
        for place, least in enumerate(RECALL_AT, start=1):
            share = found[:, place].double() / found[:, 0].clamp(min=1)
            scores[f"recall at {100 * least:.0f}"] = float(share.mean())
        return scores


class ProposalCounts:
    """Stands for a few-shot model in ``count_runs`` and tallies the proposals that it merged.

    Args:
        model: as evaluated.
        runs: as evaluated; they know the labels of their queries.
        protocol: as evaluated.
        classes: ids of the novel classes.
    """

    def __init__(
        self, model: ProposalMatcher, runs: Sequence[Any], protocol: FewShotProtocol, classes: Sequence[int]
    ) -> None:
        self.model, self.runs, self.protocol = model, runs, protocol
        self.encode, self.summarise, self.query_features = model.encode, model.summarise, model.query_features
        self.tally = ProposalTally(len(runs), classes, protocol.false_positives)
        self._seen: list[tuple[dict[str, Tensor], tuple[int, int]]] = []

    def match(self, support: Any, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """As the model's, and the proposals are kept until :meth:`observe`."""
        if "proposals" not in features:
            features = self.model.query_features(features)
        self._seen.append(({name: features[name] for name in ("proposals", "size")}, size))
        return self.model.match(support, features, size)

    def observe(self, run: int, index: int, episode: Episode) -> None:
        """Count the queries of an episode that was just matched."""
        seen, self._seen = self._seen, []
        labels: Any = episode.query_labels
        if self.protocol.size != "network":
            labels = [torch.from_numpy(label) for label in self.runs[run].query_truth(index)]
        device = seen[0][0]["proposals"].device
        with torch.inference_mode():
            for (features, size), label in zip(seen, compared_labels(self.protocol, labels, device), strict=True):
                masks, _ = full_masks(self.model, features, size, label)
                self.tally.add(run, episode.classes, masks, label)

    def tensors(self) -> list[Tensor]:
        """The counts themselves."""
        return self.tally.tensors()

    def scores(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over runs; ``reduce`` adds one int64 vector over all processes."""
        return self.tally.scores(reduce, self.protocol.absent)


def count_proposals(
    model: ProposalModel,
    runs: Sequence[EpisodeSet],
    protocol: FewShotProtocol,
    cache: FeatureCache,
    tally: ProposalTally,
    *,
    second: bool = False,
    device: torch.device | str = "cpu",
    original_labels: OriginalLabels | None = None,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    advance: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> EvaluationCounts:
    """Count, for the queries of 1-way episodes, the proposal that overlaps best with the truth; supports are not used.

    Args:
        model: in eval mode, on ``device``.
        runs: the episode list of each run; all of one length.
        protocol: rules of comparison.
        cache: of the model's proposals.
        tally: counts the rest.
        second: take the second best by soft overlap, as MM-Former's code reports its first stage.
        device: of the model.
        original_labels: needed when the protocol compares at the original size.
        rank, world_size: this process takes every ``world_size``-th episode.
        workers: loader processes.
        autocast: context for the forward pass.
        advance: called after each episode.
        progress: gives out the episodes instead of ``rank`` and ``world_size``, and keeps their counts.

    Raises:
        ValueError: the protocol needs the original labels and they are not given, the runs differ in length, or an
            episode has several ways.
    """
    ledger = Ledger(cache, progress)
    for at, episode, labels in labelled_episodes(
        runs, protocol, original_labels, device, rank=rank, world_size=world_size, workers=workers, progress=progress
    ):
        if len(episode.classes) != 1:
            raise ValueError(f"count_proposals: episodes must be of one way, got {len(episode.classes)}")
        counts, foreground = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)
        for query, label in zip(episode.query_images.to(device), labels, strict=True):
            with torch.inference_mode(), autocast():
                features = cache.features(query[None])
            size = (int(query.shape[-2]), int(query.shape[-1]))
            if protocol.size == "original":
                size = (int(label.shape[0]), int(label.shape[1]))
            with torch.inference_mode():
                masks, sums = full_masks(model, features, size, label)
                tally.add(at.run, episode.classes, masks, label)
                soft = sums[:, 0] / (sums[:, 1] + float((label == 1).sum()) - sums[:, 0] + 1e-7)
                chosen = soft.topk(min(2, len(soft))).indices[-1] if second else soft.argmax()
                prediction = masks[chosen].long()
                counts += count_pixels(prediction, label, 1, protocol.false_positives)
                foreground += count_foreground(prediction, label)
        ledger.add(at, episode.classes, counts, foreground)
        advance()
    return ledger.collected(EvaluationCounts.zeros(len(runs), len(runs[0]), max(tally.classes)))
