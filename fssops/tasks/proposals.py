"""MM-Former's segmenter as the verbs run it: regions to train on, and how far its proposals reach on novel classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from fssops.data import fewshot
from fssops.data.proposals import ProposalDataset
from fssops.engine.settings import SettingsError
from fssops.evaluation.feature_cache import FeatureCache
from fssops.evaluation.fewshot import EvaluationCounts
from fssops.evaluation.proposal_pictures import ShownProposals, proposal_grid
from fssops.evaluation.proposals import ProposalTally, best_merge, count_proposals
from fssops.evaluation.protocols import FewShotProtocol
from fssops.evaluation.results import FewShotResult
from fssops.models.mm_former import MMFormer, MMFormerSegmenter
from fssops.structures import IGNORE, Episode, ProposalBatch, move_to
from fssops.tasks.fewshot import FewShotTask
from fssops.tasks.fewshot_settings import FewShotSettings

SHOWN = 5
"""Proposals of an episode in a picture."""


class ProposalScores:
    """Takes the place of an observer: all is counted by :func:`count_proposals`.

    Args:
        tally: what it adds to.
        protocol: rules of comparison.
    """

    def __init__(self, tally: ProposalTally, protocol: FewShotProtocol) -> None:
        self.tally, self.protocol = tally, protocol

    def tensors(self) -> list[Tensor]:
        """The counts themselves."""
        return self.tally.tensors()

    def scores(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over runs."""
        return self.tally.scores(reduce, self.protocol.absent)


class ProposalTask(FewShotTask):
    """Builds what settings describe; its scores use the truth of the query to choose a proposal.

    Args:
        settings: the resolved recipe.

    Raises:
        SettingsError: more than one way.
    """

    settings_class = FewShotSettings
    collate = staticmethod(ProposalBatch.stack)  # type: ignore[assignment]
    batch_class = ProposalBatch  # type: ignore[assignment]

    def __init__(self, settings: FewShotSettings) -> None:
        super().__init__(settings)
        ways = settings.eval.ways or settings.data.ways
        if ways != 1:
            raise SettingsError(f"data.ways must be 1 for {settings.model.name}, got {ways}")

    def training_data(self) -> tuple[ProposalDataset, list[str]]:  # type: ignore[override]
        """Return the training images and lines that describe them."""
        data, source = self.settings.data, self.source()
        fold = self.fold_classes(data.fold, source)
        dataset = ProposalDataset(
            source,
            fold.train,
            fold.test,
            data.size,
            augment=data.augment,
            geometry=data.geometry,
            min_area=data.min_area,
            drop_novel=data.drop_novel,
        )
        novel = "left out" if data.drop_novel else "ignored"
        return dataset, [
            f"training data  {source.label}, {len(dataset)} of {len(source.names)} images; {fold}: {len(fold.train)} "
            f"base classes, novel classes {novel}, {data.size[0]} x {data.size[1]} pixels"
        ]

    def evaluate(
        self, model: nn.Module, fabric: Fabric, fold: int, label: str, title: str = "evaluate"
    ) -> FewShotResult:
        """Evaluate a fold; every process must call, each gets the whole result."""
        which = "second best proposal" if _published(model) else "best proposal"
        return super().evaluate(model, fabric, fold, f"{label}, {which}", title)

    def observer(
        self,
        model: nn.Module,
        runs: Sequence[fewshot.EpisodeDataset],
        protocol: FewShotProtocol,
        classes: Mapping[int, str],
    ) -> Any:
        """Recall, best proposal and best merge."""
        return ProposalScores(ProposalTally(len(runs), list(classes), protocol.false_positives), protocol)

    def counts(
        self,
        model: nn.Module,
        runs: Sequence[fewshot.EpisodeDataset],
        protocol: FewShotProtocol,
        cache: FeatureCache,
        observer: Any,
        classes: list[int],
        **options: Any,
    ) -> EvaluationCounts:
        """Count the proposal that stands for the object."""
        return count_proposals(
            model,  # type: ignore[arg-type]
            runs,
            protocol,
            cache,
            observer.tally,
            second=_published(model),
            **options,
        )

    def gallery(
        self, model: nn.Module, fabric: Fabric, result: FewShotResult, folder: Path, before: nn.Module | None = None
    ) -> list[Path]:
        """Draw ``grid.png``: of an episode of each class the best proposals and the best merge of all."""
        _, runs, _ = self.novel_runs(result.fold)
        title = f"{result.model}: novel classes, {result.setting()}"
        return draw_proposals(model, fabric, runs[0], result.classes, title, folder / "grid.png")


def _published(model: nn.Module) -> bool:
    return isinstance(model, MMFormerSegmenter) and model.published


def draw_proposals(
    model: nn.Module,
    fabric: Fabric,
    run: fewshot.EpisodeDataset,
    classes: Mapping[int, str],
    title: str,
    path: Path,
    count: int = 6,
) -> list[Path]:
    """Draw some proposals of an episode of each class: with their similarities and weights, or with their overlaps.

    Args:
        model: a segmenter or the whole system.
        fabric: launched.
        run: the episodes.
        classes: class id -> name.
        title: of the picture.
        path: where it goes.
        count: episodes, each of another class.
    """
    first_of_class: dict[int, int] = {}
    for index, spec in enumerate(run.episodes):
        first_of_class.setdefault(spec.classes[0], index)
    was_training = model.training
    model.eval()
    shown = []
    with torch.inference_mode(), fabric.autocast():
        for index in list(first_of_class.values())[:count]:
            episode = move_to(run[index], fabric.device)
            shown.append(_matched(model, episode) if isinstance(model, MMFormer) else _best(model, episode))
    model.train(was_training)
    whole = isinstance(model, MMFormer)
    order = "weight" if whole else "overlap"
    if shown:
        proposal_grid(shown, classes, title, support=whole, order=order).save(path)
    return [path] if shown else []


def _masks(model: Any, features: dict[str, Tensor], episode: Episode) -> tuple[Tensor, Tensor, Tensor]:
    """Full-size proposals [P, H, W] of the first query, their overlaps [P], and its truth."""
    label = episode.query_labels[0]
    size = (int(label.shape[0]), int(label.shape[1]))
    full = model.full_size(features["proposals"], features, size)[0].float()
    valid = label != IGNORE
    masks, target = (full > 0.5) & valid, label == 1
    overlaps = (masks & target).flatten(1).sum(1) / (masks | target).flatten(1).sum(1).clamp(min=1)
    return full, overlaps, target


def _matched(model: MMFormer, episode: Episode) -> ShownProposals:
    """The proposals that weigh most in the merge."""
    support = model.summarise(
        model.encode(episode.support_images.flatten(0, 1)),
        episode.support_foreground[None],
        episode.support_background[None],
    )
    features = model.query_features(model.encode(episode.query_images[:1]))
    found = model.compare(support, features)
    full, overlaps, target = _masks(model, features, episode)
    similarity, weights = found.similarity[0, 0], found.coefficients[0, 0]
    merge = model.full_size(found.merged[:, :1], features, (full.shape[1], full.shape[2]))[0, 0].float()
    order = weights.argsort(descending=True)[:SHOWN]
    captions = [
        f"cos {float(similarity[n]):.2f}  w {float(weights[n]):+.2f}  IoU {100 * float(overlaps[n]):.0f}" for n in order
    ]
    mask = merge > 0.5
    counted = episode.query_labels[0] != IGNORE
    reached = float((mask & target).sum() / ((mask | target) & counted).sum().clamp(min=1))
    return _shown(episode, full[order], captions, merge, f"IoU {100 * reached:.0f} %")


def _best(model: nn.Module, episode: Episode) -> ShownProposals:
    """The proposals that overlap best with the truth."""
    features = model.encode(episode.query_images[:1])  # type: ignore[operator]
    full, overlaps, target = _masks(model, features, episode)
    union, taken = best_merge(full > 0.5, target, episode.query_labels[0] != IGNORE)
    order = overlaps.argsort(descending=True, stable=True)[:SHOWN]
    captions = [f"query {int(n)}  IoU {100 * float(overlaps[n]):.0f} %" for n in order]
    return _shown(episode, full[order], captions, union.float(), f"best merge, of {len(taken)}")


def _shown(episode: Episode, masks: Tensor, captions: list[str], merge: Tensor, caption: str) -> ShownProposals:
    return ShownProposals(move_to(episode, "cpu"), masks.cpu().numpy(), captions, merge.cpu().numpy(), caption)
