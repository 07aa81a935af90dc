"""Episodes as they are evaluated: their truth by the rules of a protocol, and a model's outputs for their queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from fssops.evaluation.feature_cache import FeatureCache
from fssops.facts import Facts
from fssops.protocols import FewShotProtocol
from fssops.structures import IGNORE, Episode, require_numbers

Outputs = dict[str, list[Tensor]]
"""What a system says of an episode: outputs by name, each one tensor a query; the system's own logits first."""


class Segmenter(Protocol):
    """What evaluation asks of a few-shot model; steps of ``fssops.models.interface.FewShotModel``."""

    def encode(self, images: Tensor) -> dict[str, Tensor]: ...

    def query_features(self, features: dict[str, Tensor]) -> dict[str, Tensor]: ...

    def summarise(self, features: dict[str, Tensor], foreground: Tensor, background: Tensor) -> Any: ...

    def match(self, support: Any, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor: ...


class EpisodeSet(Protocol):
    """The episodes of one run."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Episode: ...

    def query_truth(self, index: int) -> Sequence[np.ndarray]:
        """Labels of an episode's queries at their original sizes, int64 [H0, W0]; 0, n = way n, ``IGNORE``."""
        ...

    def query_base_truth(self, index: int) -> Sequence[np.ndarray]:
        """The same with 0 background and the fold's base classes 1..C; asked where episodes have base labels."""
        ...


@dataclass(frozen=True)
class EpisodeTruth:
    """What an episode is compared with.

    Attributes:
        classes: [N] ids of the ways, on the CPU.
        labels: of the queries, [H, W] each, as the protocol compares them.
        sizes: (H, W) at which the system gives its results of the queries; where labels are of another size, results
            are stretched to it.
        base_labels: as ``labels``, of the fold's base classes; None where episodes come without.
    """

    classes: Tensor
    labels: list[Tensor]
    sizes: list[tuple[int, int]]
    base_labels: list[Tensor] | None = None


@dataclass(frozen=True)
class LabelledEpisode:
    """An episode, its number through all runs, and its truth."""

    number: int
    episode: Episode
    truth: EpisodeTruth


def labelled_episodes(
    runs: Sequence[EpisodeSet], protocol: FewShotProtocol, numbers: Sequence[int], *, workers: int = 0
) -> Iterator[LabelledEpisode]:
    """Episodes with their truth as the protocol compares it, on the CPU.

    Args:
        runs: the episode list of each run; all of one length E.
        protocol: rules of comparison.
        numbers: of the episodes, in order; episode e of run r has the number r * E + e.
        workers: loader processes.

    Raises:
        ValueError: the runs differ in length.
    """
    lengths = [len(run) for run in runs]
    if len(set(lengths)) != 1:
        raise ValueError(f"labelled_episodes: runs must be of one length, got {lengths}")
    episodes = _LabelledEpisodes(runs, protocol, numbers)
    if not workers or not numbers:
        return (episodes[place] for place in range(len(numbers)))
    generator = torch.Generator().manual_seed(0)  # spares the global random state
    loader = DataLoader(episodes, batch_size=None, num_workers=workers, generator=generator)  # type: ignore[arg-type, var-annotated]
    return iter(loader)


class _LabelledEpisodes:
    """The episodes of some numbers under one index, for a loader."""

    def __init__(self, runs: Sequence[EpisodeSet], protocol: FewShotProtocol, numbers: Sequence[int]) -> None:
        self.runs, self.protocol, self.numbers = runs, protocol, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> LabelledEpisode:
        number = self.numbers[place]
        run, index = divmod(number, len(self.runs[0]))
        episode = self.runs[run][index]
        return LabelledEpisode(number, episode, self._truth(self.runs[run], index, episode))

    def _truth(self, run: EpisodeSet, index: int, episode: Episode) -> EpisodeTruth:
        labels: Sequence[Tensor] | Tensor = episode.query_labels
        base: Sequence[Tensor] | Tensor | None = episode.query_base_labels
        if self.protocol.size != "network":
            labels = [torch.from_numpy(label) for label in run.query_truth(index)]
            if base is not None:
                base = [torch.from_numpy(label) for label in run.query_base_truth(index)]
        height, width = episode.query_images.shape[-2:]
        sizes = [(int(height), int(width))] * len(labels)
        if self.protocol.size == "original":
            sizes = [(int(label.shape[0]), int(label.shape[1])) for label in labels]
        return EpisodeTruth(
            episode.classes,
            compared_labels(self.protocol, labels),
            sizes,
            None if base is None else compared_labels(self.protocol, base),
        )


def count_supports(facts: Facts, episode: Episode, protocol: FewShotProtocol) -> bool:
    """Count supports without an object, and episodes whose support is the same picture as a query.

    Args:
        facts: are added to.
        episode: as it enters the network, not augmented: copies of one photo are equal then, whatever their names.
        protocol: says whether episodes with such a support are scored.

    Returns:
        whether the episode is to be scored.
    """
    empty = ~episode.support_foreground.flatten(2).any(-1)
    facts.add("empty_supports", int(empty.sum()), empty.numel())
    same = (episode.support_images[:, :, None] == episode.query_images).flatten(3).all(-1)
    facts.add("copied_supports", bool(same.any()))
    skipped = protocol.empty_support == "skip" and bool(empty.any())
    if protocol.empty_support == "skip":
        facts.add("skipped_episodes", skipped)
    return not skipped


def compared_labels(protocol: FewShotProtocol, labels: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """Query labels [H, W] as the protocol compares them; "square" pads right or below with ``IGNORE``."""
    if protocol.size != "square":
        return list(labels)
    return [
        F.pad(label, (0, max(label.shape) - label.shape[1], 0, max(label.shape) - label.shape[0]), value=IGNORE)
        for label in labels
    ]


def stretched(scores: Tensor, label: Tensor) -> Tensor:
    """Scores [C, h, w] at the size of a label, bilinear with aligned corners; as they are where the size fits."""
    if scores.shape[-2:] == label.shape:
        return scores
    size = (label.shape[-2], label.shape[-1])
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=True)[0]


def segment(
    model: Segmenter,
    cache: FeatureCache,
    episode: Episode,
    sizes: Sequence[tuple[int, int]] | None = None,
    match: Callable[[Any, dict[str, Tensor], tuple[int, int]], Mapping[str, Tensor]] | None = None,
) -> Outputs:
    """What a few-shot model says of an episode's queries.

    Args:
        model: in eval mode.
        cache: of its features.
        episode: on the model's device.
        sizes: (H, W) of the results of each query; None is the size of the images.
        match: stands for ``model.match`` where more than the logits is asked for: outputs by name, [1, 1, ...] each of
            one query, the system's own logits [1, 1, 1 + N, H, W] first.

    Returns:
        by name, one tensor a query; without ``match`` the logits [1 + N, H, W] under the name "".
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
        sizes = [(int(height), int(width))] * len(episode.query_images)
    outputs: Outputs = {}
    for query, size in zip(episode.query_images, sizes, strict=True):
        query_features = cache.features(query[None], model.query_features)
        matched = match(support, query_features, size) if match else {"": model.match(support, query_features, size)}
        for name, value in matched.items():
            outputs.setdefault(name, []).append(require_numbers(value[0, 0], "evaluation of an episode"))
    return outputs
