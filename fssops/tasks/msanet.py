"""MSANet as the verbs run it: a base learner trained first where none is given, then the few-shot system on top."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from fssops.data import folds
from fssops.data.episode_dataset import EpisodeDataset
from fssops.data.episodes import EpisodeList
from fssops.data.few_shot_source import FewShotSource
from fssops.engine.settings import SettingsError, Table
from fssops.evaluation.parts import PartCounts
from fssops.evaluation.protocols import FewShotProtocol
from fssops.models import create_config
from fssops.models.msanet import MSANet
from fssops.tasks.fewshot import FewShotTask
from fssops.tasks.fewshot_settings import FewShotSettings
from fssops.tasks.stages import FirstStage, first_stage_settings, take_weights

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

    base: BaseStage = Field(default_factory=BaseStage)


class MSANetTask(FewShotTask):
    """Builds what settings describe; see :class:`fssops.tasks.fewshot.FewShotTask`."""

    settings_class = MSANetSettings

    def __init__(self, settings: MSANetSettings) -> None:
        super().__init__(settings)
        self.base_count: int = create_config(settings.model.name, settings.model.options).base_classes

    def first_stage(self, run: Path) -> FirstStage | None:
        """The base learner's training; None where a checkpoint is given.

        Raises:
            SettingsError: its settings are wrong.
        """
        if self.settings.base.weights or self.settings.model.weights:
            return None
        base = self.settings.base
        config = create_config(self.settings.model.name, self.settings.model.options)
        shared = ("backbone", "backbone_width", "head_channels", "base_classes")
        settings = first_stage_settings(
            self.settings,
            "base",
            base.recipe,
            base.overrides,
            BASE_LEARNER,
            {name: getattr(config, name) for name in shared},
        )
        return FirstStage("base learner", settings, run / "base")

    def take_first_stage(self, model: nn.Module, run: Path, say: Callable[[str], None]) -> None:
        """Put the base learner into the model: from ``base.weights``, or as the first stage has left it.

        Raises:
            CheckpointError: it does not fit, or is missing.
            SettingsError: it was trained for other classes.
        """
        given = self.settings.base.weights
        if not isinstance(model, MSANet) or (self.settings.model.weights and not given):
            return
        stage = self.first_stage(run)
        taken = take_weights(model.base_learner, stage, given, "base", BASE_LEARNER, self.settings.data)
        say(f"base learner   {taken}")

    def _dataset(
        self, source: FewShotSource, fold: folds.FoldClasses, episodes: EpisodeList, **options: Any
    ) -> EpisodeDataset:
        if len(fold.train) != self.base_count:
            raise SettingsError(
                f"model.base_classes must be the number of base classes of {fold}, {len(fold.train)}, got "
                f"{self.base_count}"
            )
        return super()._dataset(source, fold, episodes, base_classes=fold.train, **options)

    def observer(
        self,
        model: nn.Module,
        runs: Sequence[EpisodeDataset],
        protocol: FewShotProtocol,
        classes: Mapping[int, str],
    ) -> PartCounts | None:
        """Counts the meta learner and the base learner apart."""
        return PartCounts(model, runs, protocol, list(classes), self.base_count)  # type: ignore[arg-type]
