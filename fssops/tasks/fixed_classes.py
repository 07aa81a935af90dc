"""What systems of fixed classes share, on images and on videos: their data, their share of it, the result of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from fssops.engine.checkpoints import read_checkpoint
from fssops.engine.settings import SettingsError
from fssops.evaluation.scores import percent
from fssops.models import create_config
from fssops.structures import MaskTargets
from fssops.tasks.resumable_evaluation import ResumableEvaluation

Say = Callable[[str], None]
Batch = TypeVar("Batch")


def unpacked_batch(kind: Callable[..., Batch], /, **values: Any) -> Batch:
    """Rebuild an ``ImageBatch`` from the plain values of a replay file."""
    if "clips" in values:  # as batches of videos were written before they were batches of images
        values["images"] = values.pop("clips")
    if values["targets"] is not None:
        values["targets"] = [MaskTargets(**target) for target in values["targets"]]
    if values["output_sizes"] is not None:
        values["output_sizes"] = [(int(height), int(width)) for height, width in values["output_sizes"]]
    return kind(**values)


class FixedClassTask(ResumableEvaluation):
    """Opens what ``[data]`` and ``[eval]`` say, each split once.

    Args:
        settings: the resolved recipe.
    """

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.config = create_config(settings.model.name, settings.model.options)
        self._sources: dict[str, Any] = {}

    def source(self, *, evaluation: bool = False) -> Any:
        """Open the data set; the split of training, or that of evaluation.

        Raises:
            SettingsError: its classes are not those of the model.
        """
        data, rules = self.settings.data, self.settings.eval
        root, split, options = data.root, data.split, data.options
        if evaluation:
            root = root if rules.root is None else rules.root
            split, options = rules.split, options if rules.options is None else rules.options
        key = f"{root} {split} {options}"
        if key not in self._sources:
            source = self.open_source(root or None, split, options)
            self.check_classes(source)
            self._sources[key] = source
        return self._sources[key]

    def open_source(self, root: str | None, split: str, options: dict[str, Any]) -> Any:
        """Open a split of the data set."""
        raise NotImplementedError

    def check_classes(self, source: Any) -> None:
        """Compare a data set's classes with the model's.

        Raises:
            SettingsError: they are not the same.
        """
        if self.config.num_classes != len(source.classes):
            raise SettingsError(
                f"model.num_classes must be the number of classes of {source.label}, {len(source.classes)}, "
                f"got {self.config.num_classes}"
            )

    def chosen(self, limit: int) -> list[int]:
        """Numbers of the evaluated images or videos: all, or ``limit`` of them evenly spread."""
        total = len(self.source(evaluation=True).names)
        count = total if not limit else min(limit, total)
        return [index * total // count for index in range(count)]

    def take_best(self, model: nn.Module, folder: Path) -> None:
        """Put the best checkpoint of a run into its model where settings want it evaluated."""
        if self.settings.eval.checkpoint == "best":
            model.load_state_dict(read_checkpoint(folder / "checkpoints" / "best.pt")["model"])

    def run_files(self) -> dict[str, Any]:
        """What a run folder keeps of the data, by file name: the classes, for prediction elsewhere."""
        return {"classes.json": self.source().classes.as_json()}


def run_result(trained: Any, before: Any, say: Say) -> dict[str, Any]:
    """Say how a run went, and give what ``result.json`` shall say.

    Args:
        trained: scores of the trained model; a split without truth has none.
        before: scores of the untrained one, or None.
        say: prints a line.

    Returns:
        plain values; ``finals`` are level lines for the curves.
    """
    found: dict[str, Any] = {"scores": trained.scores(), "trained": trained.as_json()}
    if before is not None:
        say(f"untrained      {before.line()}")
        found["untrained"] = before.as_json()
    say(f"trained        {trained.line()}")
    if not trained.scores():
        return found
    name, value = trained.main
    found["finals"] = {name: value}
    if before is not None:
        earlier = before.main[1]
        found["gain"] = value - earlier
        found["finals"][f"{name}, untrained"] = earlier
        say(f"gain           {percent(value - earlier)} points of {name}")
    return found
