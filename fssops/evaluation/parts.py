"""What the parts of a few-shot system reach on their own, counted while the system is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fssops.evaluation.fewshot import EpisodeSet, Segmenter, compared_labels, stretched
from fssops.evaluation.pixel_counts import count_foreground, count_pixels, iou, mean_iou, summed
from fssops.evaluation.protocols import FewShotProtocol
from fssops.structures import Episode


class PartedSegmenter(Segmenter, Protocol):
    """A few-shot model whose parts can be asked."""

    def match_parts(self, support: Any, features: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]: ...


class BaseEpisodeSet(EpisodeSet, Protocol):
    """Episodes that know the base classes of their queries."""

    def query_truth(self, index: int) -> Sequence[Any]: ...

    def query_base_truth(self, index: int) -> Sequence[Any]: ...


class Observer(Segmenter, Protocol):
    """Stands for a few-shot model in :func:`fssops.evaluation.fewshot.count_runs` and counts something of its own."""

    def observe(self, run: int, index: int, episode: Episode) -> None:
        """Count an episode that was just matched."""
        ...

    def tensors(self) -> list[Tensor]:
        """The counts themselves, added to in place; for those who keep them between two starts."""
        ...

    def scores(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over runs; ``reduce`` adds one int64 vector over all processes."""
        ...


class PartCounts:
    """Stands for the model in :func:`fssops.evaluation.fewshot.count_runs` and keeps what its parts said.

    Counted: the meta learner's novel classes, by the protocol's rules, and the base learner's base classes on the same
    queries, whose novel objects are background there.

    Args:
        model: gives "ensemble", "meta" and "base".
        runs: as evaluated.
        protocol: as evaluated.
        classes: ids of the novel classes.
        base_classes: number of base classes.
    """

    def __init__(
        self,
        model: PartedSegmenter,
        runs: Sequence[BaseEpisodeSet],
        protocol: FewShotProtocol,
        classes: Sequence[int],
        base_classes: int,
    ) -> None:
        self.model, self.runs, self.protocol, self.classes = model, runs, protocol, list(classes)
        self.encode, self.summarise, self.query_features = model.encode, model.summarise, model.query_features
        self._said: list[dict[str, Tensor]] = []
        self._meta = torch.zeros(len(runs), 1 + max(classes), 3, dtype=torch.int64)
        self._foreground = torch.zeros(len(runs), 2, 3, dtype=torch.int64)
        self._base = torch.zeros(len(runs), 1 + base_classes, 3, dtype=torch.int64)

    def match(self, support: Any, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """As the model's, and what its parts say is kept until :meth:`observe`."""
        found = self.model.match_parts(support, features, size)
        self._said.append({name: found[name][0, 0] for name in ("meta", "base")})
        return found["ensemble"]

    def observe(self, run: int, index: int, episode: Episode) -> None:
        """Count the queries of an episode that was just matched."""
        said, self._said = self._said, []
        device = said[0]["meta"].device
        if self.protocol.size == "network":
            if episode.query_base_labels is None:
                raise ValueError("PartCounts: episodes must come with base labels, got none")
            truths: tuple[Any, ...] = (episode.query_labels, episode.query_base_labels)
        else:
            originals = (self.runs[run].query_truth(index), self.runs[run].query_base_truth(index))
            truths = tuple([torch.from_numpy(label) for label in labels] for labels in originals)
        labels, base_labels = (compared_labels(self.protocol, truth, device) for truth in truths)
        ways, rule = len(episode.classes), self.protocol.false_positives
        for parts, label, base_label in zip(said, labels, base_labels, strict=True):
            meta = stretched(parts["meta"].float(), label).argmax(0)
            counts = count_pixels(meta, label, ways, rule)
            self._meta[run, 0] += counts[0]
            self._meta[run].index_add_(0, episode.classes.cpu(), counts[1:])
            self._foreground[run] += count_foreground(meta, label)
            base = stretched(parts["base"].float(), base_label).argmax(0)
            self._base[run] += count_pixels(base, base_label, self._base.shape[1] - 1)

    def tensors(self) -> list[Tensor]:
        """The counts themselves: meta learner's ways, its foreground, base classes."""
        return [self._meta, self._foreground, self._base]

    def scores(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over runs; ``reduce`` adds one int64 vector over all processes."""
        meta, foreground, base = summed(self.tensors(), reduce)
        return {
            "meta mIoU": float(mean_iou(iou(meta[:, self.classes]), self.protocol.absent).mean()),
            "meta binary IoU": float(iou(foreground).mean()),
            "base mIoU": float(mean_iou(iou(base[:, 1:]), "skip").mean()),
        }
