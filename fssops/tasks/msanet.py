"""MSANet as the verbs run it: a base learner trained first where none is given, then the few-shot system on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from torch import Tensor

from fssops.data.datasets.episodes import EpisodeDataset
from fssops.data.episodes import EpisodeList
from fssops.data.few_shot_source import FewShotSource
from fssops.data.folds import FoldClasses
from fssops.engine.settings import Table
from fssops.evaluation.episodes import EpisodeTruth, Outputs, segment
from fssops.evaluation.feature_cache import FeatureCache
from fssops.structures import Episode
from fssops.tasks.few_shot import FewShotTask
from fssops.tasks.few_shot_settings import FewShotSettings
from fssops.tasks.stages import first_stage_task, take_weights
from fssops.tasks.task import FirstStage

BASE_LEARNER = "pspnet"


class BaseStage(Table):
    """``[base]``: where the frozen base learner comes from."""

    weights: str = ""
    """Its checkpoint or run folder, ours or the authors'. Empty: it is trained first, into the folder ``base`` of the
    run, unless ``model.weights`` give the whole system."""
    recipe: str = "pspnet_pascal5i"
    """Recipe of that training; data set, fold, backbone and machine are taken from this recipe."""
    overrides: list[str] = Field(default_factory=list)
    """Settings of that training, ``table.key=value`` each."""


class MSANetSettings(FewShotSettings):
    """A recipe of MSANet."""

    first_stage = "base"
    base: BaseStage = Field(default_factory=BaseStage)

    @model_validator(mode="after")
    def _classes_are_held_out(self) -> MSANetSettings:
        if self.data.folds == "all":
            raise ValueError("data.folds must hold classes out, which the base learner does not know, got 'all'")
        return self


class MSANetTask(FewShotTask):
    """MSANet, see :class:`fssops.tasks.few_shot.FewShotTask`."""

    settings_class = MSANetSettings
    predictions = ("episode", "learners", "features")

    def first_stage(self, run: Path) -> FirstStage | None:
        """The base learner's training; None where a checkpoint is given.

        Raises:
            SettingsError: its settings are wrong.
        """
        if self.settings.base.weights or self.settings.model.weights:
            return None
        base = self.settings.base
        shared = ("backbone", "backbone_width", "head_channels", "base_classes")
        network = {name: getattr(self.config, name) for name in shared}
        task = first_stage_task(self.settings, "base", base.recipe, base.overrides, BASE_LEARNER, network)
        return FirstStage("base learner", task, run / "base")

    def take_first_stage(self, model: Any, run: Path) -> list[str]:
        """Put the base learner into the model: from ``base.weights``, or as the first stage has left it.

        Raises:
            CheckpointError, RunCheckpointError: it does not fit, or is missing.
            SettingsError: it was trained for other classes.
        """
        given = self.settings.base.weights
        if self.settings.model.weights and not given:
            return []
        stage = self.first_stage(run)
        line = take_weights(model.base_learner, stage, given, "base", BASE_LEARNER, self.settings.data)
        return [f"base learner   {line}"]

    def episode_dataset(
        self, source: FewShotSource, fold: FoldClasses, episodes: EpisodeList, **options: Any
    ) -> EpisodeDataset:
        """Episodes with the base labels of their queries."""
        self.check_base_classes(fold)
        return super().episode_dataset(source, fold, episodes, base_classes=fold.train, **options)

    def outputs(self, model: Any, cache: FeatureCache, episode: Episode, truth: EpisodeTruth) -> Outputs:
        """The ensemble's logits, and those of the meta learner and of the base learner."""

        def match(support: Any, features: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
            parts = model.match_parts(support, features, size)
            return {name: parts[name] for name in ("ensemble", "meta", "base")}

        return segment(model, cache, episode, truth.sizes, match)
