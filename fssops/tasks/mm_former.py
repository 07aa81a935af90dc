"""MM-Former as the verbs run it: a segmenter trained first where none is given, then the matching on top of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lightning.fabric import Fabric
from pydantic import Field
from torch import nn

from fssops.data.episode_dataset import EpisodeDataset
from fssops.engine.checkpoints import has_checkpoint
from fssops.engine.run_folder import RunFolder
from fssops.engine.settings import Table
from fssops.evaluation.proposals import ProposalCounts
from fssops.evaluation.protocols import FewShotProtocol
from fssops.evaluation.results import FewShotResult
from fssops.models import create_config
from fssops.models.mm_former import MMFormer
from fssops.tasks.fewshot import FewShotTask
from fssops.tasks.fewshot_settings import FewShotEval, FewShotSettings
from fssops.tasks.proposals import draw_proposals
from fssops.tasks.stages import FirstStage, check_trained, first_stage_settings, take_weights

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

    segmenter: SegmenterStage = Field(default_factory=SegmenterStage)
    eval: MMFormerEval = Field(default_factory=MMFormerEval)


class MMFormerTask(FewShotTask):
    """Builds what settings describe; see :class:`fssops.tasks.fewshot.FewShotTask`."""

    settings_class = MMFormerSettings

    def first_stage(self, run: Path) -> FirstStage | None:
        """The segmenter's training; None where a checkpoint is given.

        Raises:
            SettingsError: its settings are wrong, or its folder holds a training for other classes.
        """
        stage = self.settings.segmenter
        if stage.weights or self.settings.model.weights:
            return None
        config = create_config(self.settings.model.name, self.settings.model.options)
        network = vars(config.segmenter())
        settings = first_stage_settings(self.settings, "segmenter", stage.recipe, stage.overrides, SEGMENTER, network)
        folder = run / "segmenter"
        if stage.folder:
            folder = Path(stage.folder.replace("{fold}", str(self.settings.data.fold)))
            if has_checkpoint(folder / "checkpoints"):
                earlier = RunFolder(folder).load_settings()
                check_trained(earlier, f"segmenter.folder: {folder}", SEGMENTER, self.settings.data)
        return FirstStage("segmenter", settings, folder)

    def take_first_stage(self, model: nn.Module, run: Path, say: Callable[[str], None]) -> None:
        """Put the segmenter into the model: from ``segmenter.weights``, or as the first stage has left it.

        Raises:
            CheckpointError: it does not fit, or is missing.
            SettingsError: it was trained for other classes.
        """
        given = self.settings.segmenter.weights
        if not isinstance(model, MMFormer) or (self.settings.model.weights and not given):
            return
        stage = self.first_stage(run)
        taken = take_weights(model.segmenter, stage, given, "segmenter", SEGMENTER, self.settings.data)
        say(f"segmenter      {taken}")

    def observer(
        self,
        model: nn.Module,
        runs: Sequence[EpisodeDataset],
        protocol: FewShotProtocol,
        classes: Mapping[int, str],
    ) -> ProposalCounts | None:
        """Scores the proposals beside their merge."""
        if not self.settings.eval.proposals:
            return None
        return ProposalCounts(model, runs, protocol, list(classes))  # type: ignore[arg-type]

    def gallery(
        self, model: nn.Module, fabric: Fabric, result: FewShotResult, folder: Path, before: nn.Module | None = None
    ) -> list[Path]:
        """As for every few-shot system, and ``proposals.png`` with similarities, weights and merge (1-way)."""
        written = super().gallery(model, fabric, result, folder, before)
        if result.ways > 1:
            return written
        _, runs, _ = self.novel_runs(result.fold)
        title = f"{result.model}: proposals and their merge, {result.setting()}"
        return written + draw_proposals(model, fabric, runs[0], result.classes, title, folder / "proposals.png")
