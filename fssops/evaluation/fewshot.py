"""Few-shot evaluation: segments the queries of episode lists and counts pixels, on one process or many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from fssops.evaluation.feature_cache import FeatureCache
from fssops.evaluation.pixel_counts import count_foreground, count_pixels, summed
from fssops.evaluation.protocols import FewShotProtocol
from fssops.structures import IGNORE, Episode, move_to


class Segmenter(Protocol):
    """What evaluation asks of a few-shot model; the steps of ``fssops.models.interface.FewShotModel``."""

    def encode(self, images: Tensor) -> dict[str, Tensor]: ...

    def query_features(self, features: dict[str, Tensor]) -> dict[str, Tensor]: ...

    def summarise(self, features: dict[str, Tensor], foreground: Tensor, background: Tensor) -> Any: ...

    def match(self, support: Any, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor: ...


class EpisodeSet(Protocol):
    """The episodes of one run."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Episode: ...


OriginalLabels = Callable[[int, int], Sequence[Tensor]]
"""(run, episode) -> the labels of its queries at their original sizes, each [H0, W0]; 0, n = way n, ``IGNORE``."""


class Progress(Protocol):
    """What was counted before, and what keeps what is counted now; see ``fssops.engine.evaluation_progress``."""

    states: list[Any]

    def mine(self, items: Iterable[int]) -> list[int]: ...

    def counted(self, item: int, state: Callable[[], Any]) -> None: ...


@dataclass
class EvaluationCounts:
    """Pixel counts of all runs; sums over processes are exact.

    Attributes:
        classes: [R, 1 + largest class id, 3] int64; row 0 is the background, others by the data set's class id.
        foreground: [R, 2, 3] int64; rows background and any way.
        episodes: [R, E, 3] int64; TP, FP, FN of an episode's ways, added up.
        work: [4] int64; images asked for and passes through the backbone; of the steps that depend on a query alone,
            where a system has them, queries asked for and passes.
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
            work=torch.zeros(4, dtype=torch.int64),
        )

    def summed(self, reduce: Callable[[Tensor], Tensor]) -> EvaluationCounts:
        """Return the sums over processes; ``reduce`` adds one int64 vector over all of them."""
        return EvaluationCounts(*summed([self.classes, self.foreground, self.episodes, self.work], reduce))


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
    for query, size in zip(episode.query_images, sizes, strict=True):
        logits.append(model.match(support, cache.features(query[None], model.query_features), size)[0, 0])
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
    progress: Progress | None = None,
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
        progress: gives out the episodes instead of ``rank`` and ``world_size``, and keeps their counts.

    Raises:
        ValueError: the protocol needs the original labels and they are not given, or the runs differ in length.
    """
    ledger = Ledger(cache, progress)
    for at, episode, labels in labelled_episodes(
        runs, protocol, original_labels, device, rank=rank, world_size=world_size, workers=workers, progress=progress
    ):
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
        if observe is not None:
            observe(at.run, at.index, episode)
        ledger.add(at, episode.classes, counts, foreground)
        advance()
    return ledger.collected(EvaluationCounts.zeros(len(runs), len(runs[0]), max(classes)))


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


class Ledger:
    """The counts of single episodes, in the order they were made.

    Args:
        cache: counts images and passes.
        progress: gives what was counted before, and keeps what is added.
    """

    def __init__(self, cache: FeatureCache, progress: Progress | None = None) -> None:
        self._cache, self._progress = cache, progress
        self._rows: list[tuple[int, int, Tensor, Tensor, Tensor]] = []
        self._earlier: list[Mapping[str, Tensor]] = list(progress.states) if progress is not None else []

    def add(self, at: Place, classes: Tensor, counts: Tensor, foreground: Tensor) -> None:
        """Add an episode: where it stands, its classes [N], counts [1 + N, 3] and [2, 3]."""
        self._rows.append((at.run, at.index, classes.cpu(), counts, foreground))
        if self._progress is not None:
            self._progress.counted(at.number, self._packed)

    def collected(self, result: EvaluationCounts) -> EvaluationCounts:
        """Add everything to ``result``, and the cache's work."""
        for state in [*self._earlier, self._packed()] if self._rows else self._earlier:
            for row, (run, index) in enumerate(state["places"].tolist()):
                classes, counts = state["classes"][row], state["counts"][row]
                result.classes[run, 0] += counts[0]
                result.classes[run].index_add_(0, classes, counts[1:])
                result.foreground[run] += state["foreground"][row]
                result.episodes[run, index] = counts[1:].sum(0)
            result.work += state["work"]
        if not self._rows:
            result.work += self._cache.work()
        return result

    def _packed(self) -> dict[str, Tensor]:
        return {
            "places": torch.tensor([(run, index) for run, index, *_ in self._rows]),
            # Runs may differ in their ways: rows of nothing, added to the background, make them equal.
            "classes": pad_sequence([row[2] for row in self._rows], batch_first=True),
            "counts": pad_sequence([row[3] for row in self._rows], batch_first=True),
            "foreground": torch.stack([row[4] for row in self._rows]),
            "work": self._cache.work(),
        }


@dataclass(frozen=True)
class Place:
    """Where an episode stands: its number through all runs, its run, and its number in that run."""

    number: int
    run: int
    index: int


class _Places:
    """The episodes at some places under one index, for a loader."""

    def __init__(self, runs: Sequence[EpisodeSet], places: Sequence[Place]) -> None:
        self.runs, self.places = runs, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, item: int) -> Episode:
        at = self.places[item]
        return self.runs[at.run][at.index]


def labelled_episodes(
    runs: Sequence[EpisodeSet],
    protocol: FewShotProtocol,
    original_labels: OriginalLabels | None,
    device: torch.device | str,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    progress: Progress | None = None,
) -> Iterator[tuple[Place, Episode, list[Tensor]]]:
    """The episodes of this process, each with its place and its query labels as the protocol compares them.

    Args:
        runs: the episode list of each run; all of one length.
        protocol: rules of comparison.
        original_labels: needed when the protocol compares at the original size.
        device: of the labels; episodes stay where they are.
        rank, world_size: this process takes every ``world_size``-th episode.
        workers: loader processes.
        progress: gives out the episodes instead of ``rank`` and ``world_size``.

    Raises:
        ValueError: the protocol needs the original labels and they are not given, or the runs differ in length.
    """
    lengths = [len(run) for run in runs]
    if len(set(lengths)) != 1:
        raise ValueError(f"labelled_episodes: runs must be of one length, got {lengths}")
    if protocol.size != "network" and original_labels is None:
        raise ValueError(f"labelled_episodes: original_labels must be given for protocol {protocol.name!r}, got None")
    total = len(runs) * lengths[0]
    mine = shard(total, rank, world_size) if progress is None else progress.mine(range(total))
    places = [Place(number, *divmod(number, lengths[0])) for number in mine]
    for at, episode in zip(places, _loaded(_Places(runs, places), workers), strict=True):
        if protocol.size == "network" or original_labels is None:
            labels: Sequence[Tensor] | Tensor = episode.query_labels
        else:
            labels = original_labels(at.run, at.index)
        yield at, episode, compared_labels(protocol, labels, device)


def _loaded(episodes: _Places, workers: int) -> Iterator[Episode]:
    if not workers or not len(episodes):
        return (episodes[item] for item in range(len(episodes)))
    generator = torch.Generator().manual_seed(0)  # spares the global random state
    return iter(
        DataLoader(episodes, batch_size=None, num_workers=workers, generator=generator)  # type: ignore[arg-type]
    )
