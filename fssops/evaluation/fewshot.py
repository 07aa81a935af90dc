"""Few-shot evaluation: segments the queries of episode lists and counts pixels, on one process or many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from fssops.evaluation.counts import count_foreground, count_pixels
from fssops.evaluation.feature_cache import FeatureCache
from fssops.evaluation.protocols import FewShotProtocol
from fssops.structures import IGNORE, Episode, move_to


class Segmenter(Protocol):
    """What evaluation asks of a few-shot model; the three steps of ``fssops.models.interface.FewShotModel``."""

    def encode(self, images: Tensor) -> dict[str, Tensor]: ...

    def summarise(self, features: dict[str, Tensor], foreground: Tensor, background: Tensor) -> Any: ...

    def match(self, support: Any, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor: ...


class EpisodeSet(Protocol):
    """The episodes of one run."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Episode: ...


OriginalLabels = Callable[[int, int], Sequence[Tensor]]
"""(run, episode) -> the labels of its queries at their original sizes, each [H0, W0]; 0, n = way n, ``IGNORE``."""


@dataclass
class EvaluationCounts:
    """Pixel counts of all runs; sums over processes are exact.

    Attributes:
        classes: [R, 1 + largest class id, 3] int64; row 0 is the background, others by the data set's class id.
        foreground: [R, 2, 3] int64; rows background and any way.
        episodes: [R, E, 3] int64; TP, FP, FN of an episode's ways, added up.
        work: [2] int64; images asked for, and passes through the backbone.
    """

    classes: Tensor
    foreground: Tensor
    episodes: Tensor
    work: Tensor

    @staticmethod
    def zeros(runs: int, episodes: int, largest_class: int) -> EvaluationCounts:
        """Return counts of nothing."""
        return EvaluationCounts(
            classes=torch.zeros(runs, 1 + largest_class, 3, dtype=torch.int64),
            foreground=torch.zeros(runs, 2, 3, dtype=torch.int64),
            episodes=torch.zeros(runs, episodes, 3, dtype=torch.int64),
            work=torch.zeros(2, dtype=torch.int64),
        )

    def summed(self, reduce: Callable[[Tensor], Tensor]) -> EvaluationCounts:
        """Return the sums over processes; ``reduce`` adds one int64 vector over all of them."""
        parts = [self.classes, self.foreground, self.episodes, self.work]
        flat = reduce(torch.cat([part.reshape(-1) for part in parts])).cpu()
        pieces = flat.split([part.numel() for part in parts])
        return EvaluationCounts(*(piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)))


def shard(total: int, rank: int, world_size: int) -> range:
    """Return the episodes of a process: every one belongs to exactly one, whatever the numbers."""
    return range(rank, total, world_size)


def segment(
    model: Segmenter, cache: FeatureCache, episode: Episode, sizes: Sequence[tuple[int, int]] | None = None
) -> list[Tensor]:
    """Predict the label maps of an episode's queries.

    Args:
        model: in eval mode.
        cache: of its features.
        episode: on the model's device.
        sizes: (H, W) of each prediction; None is the size of the images.

    Returns:
        Q logits, each [1 + N, H, W].
    """
    ways, shots = episode.support_images.shape[:2]
    features = cache.features(episode.support_images.flatten(0, 1))
    support = model.summarise(
        features,
        episode.support_foreground.view(1, ways, shots, *episode.support_foreground.shape[-2:]),
        episode.support_background.view(1, ways, shots, *episode.support_background.shape[-2:]),
    )
    if sizes is None:
        height, width = episode.query_images.shape[-2:]
        sizes = [(int(height), int(width))] * episode.query_images.shape[0]
    logits = []
    complete = getattr(model, "query_features", None)
    for query, size in zip(episode.query_images, sizes, strict=True):
        logits.append(model.match(support, cache.features(query[None], complete), size)[0, 0])
    return logits


def count_runs(
    model: Segmenter,
    runs: Sequence[EpisodeSet],
    protocol: FewShotProtocol,
    cache: FeatureCache,
    *,
    classes: Sequence[int],
    device: torch.device | str = "cpu",
    original_labels: OriginalLabels | None = None,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    advance: Callable[[], None] = lambda: None,
    observe: Callable[[int, int, Episode], None] | None = None,
) -> EvaluationCounts:
    """Count the pixels of the episodes of this process.

    Args:
        model: in eval mode, on ``device``.
        runs: the episode list of each run; all of one length.
        protocol: rules of comparison.
        cache: of the model's features; it is shared by all runs.
        classes: ids that the episodes may draw.
        original_labels: needed when the protocol compares at the original size.
        rank, world_size: this process takes every ``world_size``-th episode.
        workers: loader processes.
        autocast: context for the forward pass.
        advance: called after each episode.
        observe: called with (run, index, episode) after each episode, for counts of one's own.

    Raises:
        ValueError: the protocol needs the original labels and they are not given, or the runs differ in length.
    """
    length = len(runs[0])
    if any(len(run) != length for run in runs):
        raise ValueError(f"count_runs: runs must be of one length, got {[len(run) for run in runs]}")
    if protocol.size != "network" and original_labels is None:
        raise ValueError(f"count_runs: original_labels must be given for protocol {protocol.name!r}, got None")
    counted: list[tuple[int, int, Tensor, Tensor, Tensor]] = []
    for place, episode in load_episodes(runs, shard(len(runs) * length, rank, world_size), workers):
        run, index = divmod(place, length)
        original = original_labels(run, index) if protocol.size != "network" and original_labels else None
        labels = compared_labels(protocol, original if original is not None else episode.query_labels, device)
        sizes = None
        if protocol.size == "original":
            sizes = [(int(label.shape[0]), int(label.shape[1])) for label in labels]
        with torch.inference_mode(), autocast():
            logits = segment(model, cache, move_to(episode, device), sizes)
        ways = len(episode.classes)
        counts = torch.zeros(1 + ways, 3, dtype=torch.int64)
        foreground = torch.zeros(2, 3, dtype=torch.int64)
        for scores, label in zip(logits, labels, strict=True):
            prediction = stretched(scores.float(), label).argmax(0)
            counts += count_pixels(prediction, label, ways, protocol.false_positives)
            foreground += count_foreground(prediction, label)
        counted.append((run, index, episode.classes, counts, foreground))
        if observe is not None:
            observe(run, index, episode)
        advance()
    return collected(counted, EvaluationCounts.zeros(len(runs), length, max(classes)), cache)


def compared_labels(
    protocol: FewShotProtocol, labels: Sequence[Tensor] | Tensor, device: torch.device | str
) -> list[Tensor]:
    """Query labels [H, W] as the protocol compares them; "square" pads right or below with ``IGNORE``."""
    found = [label.to(device) for label in labels]
    if protocol.size != "square":
        return found
    return [
        F.pad(label, (0, max(label.shape) - label.shape[1], 0, max(label.shape) - label.shape[0]), value=IGNORE)
        for label in found
    ]


def stretched(scores: Tensor, label: Tensor) -> Tensor:
    """Scores [C, h, w] at the size of a label, bilinear with aligned corners; as they are where the size fits."""
    if scores.shape[-2:] == label.shape:
        return scores
    size = (label.shape[-2], label.shape[-1])
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=True)[0]


def collected(
    counted: Sequence[tuple[int, int, Tensor, Tensor, Tensor]], result: EvaluationCounts, cache: FeatureCache
) -> EvaluationCounts:
    """Add (run, episode, classes, counts of the ways, counts of the foreground) to ``result``, and the cache's work."""
    for run, index, classes, counts, foreground in counted:
        result.classes[run, 0] += counts[0]
        result.classes[run].index_add_(0, classes.cpu(), counts[1:])
        result.foreground[run] += foreground
        result.episodes[run, index] = counts[1:].sum(0)
    result.work += torch.tensor([cache.requests, cache.passes])
    return result


class _Places:
    """The episodes of all runs under one index, for a loader."""

    def __init__(self, runs: Sequence[EpisodeSet], places: range) -> None:
        self.runs, self.places, self.length = runs, places, len(runs[0])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, item: int) -> tuple[int, Episode]:
        place = self.places[item]
        run, index = divmod(place, self.length)
        return place, self.runs[run][index]


def load_episodes(runs: Sequence[EpisodeSet], places: range, workers: int) -> Iterator[tuple[int, Episode]]:
    """The episodes at some places, counted through all runs, each with its place."""
    dataset = _Places(runs, places)
    if not workers or not places:
        return (dataset[item] for item in range(len(dataset)))
    generator = torch.Generator().manual_seed(0)  # spares the global random state
    return iter(
        DataLoader(dataset, batch_size=None, num_workers=workers, generator=generator)  # type: ignore[arg-type]
    )
