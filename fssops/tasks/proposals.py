"""MM-Former's segmenter: regions to train on, and how far its proposals reach on novel classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor, nn

from fssops.data.datasets.episodes import EpisodeDataset
from fssops.data.datasets.proposals import ProposalDataset
from fssops.engine.settings import SettingsError
from fssops.evaluation.episode_pictures import ShownProposals, proposal_grid
from fssops.evaluation.episodes import EpisodeTruth, Outputs
from fssops.evaluation.feature_cache import FeatureCache
from fssops.evaluation.metrics.proposals import best_merge, best_proposals
from fssops.evaluation.results import FewShotResult
from fssops.structures import IGNORE, Episode, ProposalBatch, move_to
from fssops.tasks.few_shot import FewShotTask, one_of_each_class
from fssops.tasks.few_shot_settings import FewShotSettings
from fssops.tasks.resumable_evaluation import in_evaluation
from fssops.tasks.task import Evaluation

SHOWN = 5
"""Proposals of an episode in a picture."""


class ProposalTask(FewShotTask):
    """A system that proposes regions; its scores use the truth of the query to choose one.

    Args:
        settings: the resolved recipe.

    Raises:
        SettingsError: more than one way.
    """

    settings_class = FewShotSettings
    takes_supports = False
    several = "systems that propose regions"
    one = "a system that proposes regions"
    collate = staticmethod(ProposalBatch.stack)  # type: ignore[assignment]
    unpack_batch = ProposalBatch  # type: ignore[assignment]
    predictions = ("episode", "proposals", "features")
    kept_novel_images = "ignored"

    def __init__(self, settings: FewShotSettings) -> None:
        super().__init__(settings)
        ways = settings.eval.ways or settings.data.ways
        if ways != 1:
            raise SettingsError(f"data.ways must be 1 for {settings.model.name}, got {ways}")

    def training_data(self) -> tuple[ProposalDataset, list[str]]:
        """Return the training images and lines that describe them."""
        data, source = self.settings.data, self.source()
        fold = self.fold_classes(data.fold, source)
        dataset = ProposalDataset(
            source,
            fold.train,
            fold.novel,
            data.size,
            augment=data.augment,
            geometry=data.geometry,
            min_area=data.min_area,
            drop_novel=data.drop_novel,
        )
        self.count_novel_images(source, fold)
        novel = "left out" if data.drop_novel else "ignored"
        return dataset, [
            f"training data  {source.label}, {len(dataset)} of {len(source.names)} images; {fold}: {len(fold.train)} "
            f"base classes, novel classes {novel}, {data.size[0]} x {data.size[1]} pixels"
        ]

    def label_of(self, model: Any, label: str) -> str:
        """Say which proposal is scored."""
        return f"{label}, {'second best proposal' if model.published else 'best proposal'}"

    def outputs(self, model: Any, cache: FeatureCache, episode: Episode, truth: EpisodeTruth) -> Outputs:
        """The proposal that overlaps best with the truth, as scores of background and object, and all proposals."""
        features = [cache.features(query[None]) for query in episode.query_images]
        return best_proposals(model.full_size, features, truth, second=model.published)

    def write(
        self, evaluation: Evaluation, model: nn.Module, fabric: Fabric, folder: Path, before: nn.Module | None = None
    ) -> list[Path]:
        """Write the episode lists and ``grid.png``: each class's best proposals and their best merge."""
        result = evaluation.result
        assert isinstance(result, FewShotResult)
        written = self.write_episodes(result.fold, folder)
        rows = shown_proposals(overlapping_proposals, model, fabric, self.novel_runs(result.fold).datasets[0])
        if not rows:
            return written
        title, path = f"{result.model}: novel classes, {result.setting()}", folder / "grid.png"
        proposal_grid(rows, result.classes, title, support=False, order="overlap").save(path)
        return [*written, path]

    def predictor(self, model: nn.Module, label: str, options: Any) -> Any:
        """Refuse: proposals alone are no segmentation.

        Raises:
            SettingsError: always.
        """
        raise SettingsError(
            f"--checkpoint: {self.settings.model.name} proposes regions and segments nothing by itself; "
            "use a checkpoint of mm_former"
        )


def shown_proposals(
    show: Callable[[Any, Episode], ShownProposals],
    model: nn.Module,
    fabric: Fabric,
    dataset: EpisodeDataset,
    count: int = 6,
) -> list[ShownProposals]:
    """Proposals of an episode of each class, for a picture.

    Args:
        show: :func:`matched_proposals` or :func:`overlapping_proposals`.
        model: on the device of ``fabric``.
        fabric: launched.
        dataset: the episodes.
        count: at most.
    """
    with in_evaluation(model), fabric.autocast():
        return [show(model, move_to(dataset[i], fabric.device)) for i in one_of_each_class(dataset)[:count]]


def _masks(model: Any, features: dict[str, Tensor], episode: Episode) -> tuple[Tensor, Tensor, Tensor]:
    """Full-size proposals [P, H, W] of the first query, their overlaps [P], and its truth."""
    label = episode.query_labels[0]
    size = (int(label.shape[0]), int(label.shape[1]))
    full = model.full_size(features["proposals"], features, size)[0].float()
    valid = label != IGNORE
    masks, target = (full > 0.5) & valid, label == 1
    overlaps = (masks & target).flatten(1).sum(1) / (masks | target).flatten(1).sum(1).clamp(min=1)
    return full, overlaps, target


def matched_proposals(model: Any, episode: Episode) -> ShownProposals:
    """The proposals that weigh most in the merge."""
    support = model.summarise(
        model.encode(episode.support_images.flatten(0, 1)),
        episode.support_foreground[None],
        episode.support_background[None],
    )
    features = model.encode(episode.query_images[:1])
    features = model.query_features(features)
    comparison = model.compare(support, features)
    full, overlaps, target = _masks(model, features, episode)
    similarity, weights = comparison.similarity[0, 0], comparison.coefficients[0, 0]
    merge = model.full_size(comparison.merged[:, :1], features, (full.shape[1], full.shape[2]))[0, 0].float()
    order = weights.argsort(descending=True)[:SHOWN]
    captions = [
        f"cos {float(similarity[n]):.2f}  w {float(weights[n]):+.2f}  IoU {100 * float(overlaps[n]):.0f}" for n in order
    ]
    mask = merge > 0.5
    counted = episode.query_labels[0] != IGNORE
    reached = float((mask & target).sum() / ((mask | target) & counted).sum().clamp(min=1))
    return _shown(episode, full[order], captions, merge, f"IoU {100 * reached:.0f} %")


def overlapping_proposals(model: Any, episode: Episode) -> ShownProposals:
    """The proposals that overlap best with the truth."""
    features = model.encode(episode.query_images[:1])
    full, overlaps, target = _masks(model, features, episode)
    union, taken = best_merge(full > 0.5, target, episode.query_labels[0] != IGNORE)
    order = overlaps.argsort(descending=True, stable=True)[:SHOWN]
    captions = [f"query {int(n)}  IoU {100 * float(overlaps[n]):.0f} %" for n in order]
    return _shown(episode, full[order], captions, union.float(), f"best merge, of {len(taken)}")


def _shown(episode: Episode, masks: Tensor, captions: list[str], merge: Tensor, caption: str) -> ShownProposals:
    return ShownProposals(move_to(episode, "cpu"), masks.cpu().numpy(), captions, merge.cpu().numpy(), caption)
