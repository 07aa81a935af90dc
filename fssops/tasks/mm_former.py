"""MM-Former as the verbs run it: a segmenter trained first where none is given, then the matching on top of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from pydantic import Field
from torch import Tensor, nn

from fssops.engine.checkpoints import has_checkpoint
from fssops.engine.run_folder import RunFolder
from fssops.engine.settings import Table
from fssops.evaluation.episode_pictures import proposal_grid
from fssops.evaluation.episodes import EpisodeTruth, Outputs, segment
from fssops.evaluation.feature_cache import FeatureCache
from fssops.evaluation.metrics.proposals import full_masks
from fssops.evaluation.results import FewShotResult
from fssops.structures import Episode
from fssops.tasks.few_shot import FewShotTask
from fssops.tasks.few_shot_settings import FewShotEval, FewShotSettings
from fssops.tasks.proposals import matched_proposals, shown_proposals
from fssops.tasks.stages import check_trained, first_stage_task, take_weights
from fssops.tasks.task import Evaluation, FirstStage

SEGMENTER = "mm_former_segmenter"


class SegmenterStage(Table):
    """``[segmenter]``: where the frozen segmenter comes from. One serves every number of shots of its fold."""

    weights: str = ""
    """Its checkpoint or run folder, ours or the authors'. Empty: it is trained first, unless ``model.weights`` give the
    whole system or its segmenter."""
    folder: str = ""
    """Folder of that training, ``{fold}`` stands for the fold; runs with other shots that name the same folder take
    what is there. Empty: ``segmenter`` in the run's folder."""
    recipe: str = "mm_former_segmenter_pascal5i"
    """Recipe of that training; data set, fold, network and machine are taken from this recipe."""
    overrides: list[str] = Field(default_factory=list)
    """Settings of that training, ``table.key=value`` each."""


class MMFormerEval(FewShotEval):
    """``[eval]`` of MM-Former."""

    proposals: bool = True
    """Also score the proposals: recall, best proposal, best merge."""


class MMFormerSettings(FewShotSettings):
    """A recipe of MM-Former."""

    first_stage = "segmenter"
    segmenter: SegmenterStage = Field(default_factory=SegmenterStage)
    eval: MMFormerEval = Field(default_factory=MMFormerEval)


class MMFormerTask(FewShotTask):
    """MM-Former, see :class:`fssops.tasks.few_shot.FewShotTask`."""

    settings_class = MMFormerSettings

    def first_stage(self, run: Path) -> FirstStage | None:
        """The segmenter's training; None where a checkpoint is given.

        Raises:
            SettingsError: its settings are wrong, or its folder holds a training for other classes.
        """
        stage = self.settings.segmenter
        if stage.weights or self.settings.model.weights:
            return None
        network = vars(self.config.segmenter())
        task = first_stage_task(self.settings, "segmenter", stage.recipe, stage.overrides, SEGMENTER, network)
        folder = run / "segmenter"
        if stage.folder:
            folder = Path(stage.folder.replace("{fold}", str(self.settings.data.fold)))
            if has_checkpoint(folder / "checkpoints"):
                earlier = RunFolder(folder).load_settings()
                check_trained(earlier, f"segmenter.folder: {folder}", SEGMENTER, self.settings.data)
        return FirstStage("segmenter", task, folder)

    def take_first_stage(self, model: Any, run: Path) -> list[str]:
        """Put the segmenter into the model: from ``segmenter.weights``, or as the first stage has left it.

        Raises:
            CheckpointError, RunCheckpointError: it does not fit, or is missing.
            SettingsError: it was trained for other classes.
        """
        given = self.settings.segmenter.weights
        if self.settings.model.weights and not given:
            return []
        stage = self.first_stage(run)
        line = take_weights(model.segmenter, stage, given, "segmenter", SEGMENTER, self.settings.data)
        return [f"segmenter      {line}"]

    @property
    def predictions(self) -> tuple[str, ...]:  # type: ignore[override]
        """Proposals are scored where settings ask for it."""
        return ("episode", *(("proposals",) if self.settings.eval.proposals else ()), "features")

    def outputs(self, model: Any, cache: FeatureCache, episode: Episode, truth: EpisodeTruth) -> Outputs:
        """The logits, and the proposals that they were merged from."""
        if not self.settings.eval.proposals:
            return super().outputs(model, cache, episode, truth)
        labels = iter(truth.labels)

        def match(support: Any, features: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
            logits = model.match(support, features, size)
            masks, _ = full_masks(model.full_size, features, size, next(labels).to(logits.device))
            return {"": logits, "proposals": masks[None, None]}

        return segment(model, cache, episode, truth.sizes, match)

    def write(
        self, evaluation: Evaluation, model: nn.Module, fabric: Fabric, folder: Path, before: nn.Module | None = None
    ) -> list[Path]:
        """As for every few-shot system, and ``proposals.png`` with similarities, weights and merge (1-way)."""
        written, result = super().write(evaluation, model, fabric, folder, before), evaluation.result
        assert isinstance(result, FewShotResult)
        if result.ways > 1:
            return written
        title = f"{result.model}: proposals and their merge, {result.setting()}"
        rows = shown_proposals(matched_proposals, model, fabric, self.novel_runs(result.fold).datasets[0])
        if rows:
            path = folder / "proposals.png"
            proposal_grid(rows, result.classes, title, support=True, order="weight").save(path)
            written.append(path)
        return written
