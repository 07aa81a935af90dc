"""A base learner as the verbs run it: data from settings, validation, mIoU of the base classes, pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from fssops.data.datasets.base_classes import BaseClassDataset
from fssops.engine.checkpoints import read_checkpoint
from fssops.engine.progress import ProgressBar
from fssops.engine.random_state import preserved_random_state
from fssops.engine.settings import SettingsError
from fssops.engine.trainer import Validate
from fssops.evaluation import pictures
from fssops.evaluation.base_classes import BaseClassResult, score_base_classes
from fssops.evaluation.pixel_counts import count_pixels
from fssops.models import create_config
from fssops.normalisation import denormalise
from fssops.structures import LabelMapBatch
from fssops.tasks.base_class_settings import BaseClassSettings
from fssops.tasks.folded_task import FoldedTask


class BaseClassTask(FoldedTask):
    """Builds what settings describe.

    Args:
        settings: the resolved recipe.
    """

    settings_class = BaseClassSettings
    collate = staticmethod(LabelMapBatch.stack)
    batch_class = LabelMapBatch

    def __init__(self, settings: BaseClassSettings) -> None:
        super().__init__(settings)
        self.base_count: int = create_config(settings.model.name, settings.model.options).base_classes

    def dataset(self, *, training: bool) -> BaseClassDataset:
        """Images of the training split, augmented, or of the evaluation split.

        Raises:
            SettingsError: the fold has another number of base classes than the model.
        """
        data, source = self.settings.data, self.source(evaluation=not training)
        fold = self.fold_classes(data.fold, source)
        if len(fold.train) != self.base_count:
            raise SettingsError(
                f"model.base_classes must be the number of base classes of {fold}, {len(fold.train)}, got "
                f"{self.base_count}"
            )
        return BaseClassDataset(
            source,
            fold.train,
            data.size,
            augment=data.augment if training else "none",
            geometry=data.geometry,
            avoid=fold.test if training and data.drop_novel else (),
        )

    def training_data(self) -> tuple[BaseClassDataset, list[str]]:
        """Return the training images and lines that describe them."""
        data, dataset = self.settings.data, self.dataset(training=True)
        fold = self.fold_classes(data.fold, dataset.source)
        novel = "left out" if data.drop_novel else "background"
        return dataset, [
            f"training data  {dataset.source.label}, {len(dataset)} of {len(dataset.source.names)} images; {fold}: "
            f"{len(fold.train)} base classes, novel classes {novel}, {data.size[0]} x {data.size[1]} pixels"
        ]

    def validation(self, fabric: Fabric) -> Validate | None:
        """Return a callback that scores base classes on images of the evaluation split, or None."""
        if not self.settings.engine.validate_every:
            return None
        dataset = self.dataset(training=False)

        def validate(model: nn.Module, step: int) -> Mapping[str, float]:
            limit = self.settings.eval.validation_images
            return {"val/base_miou": self._score(model, fabric, dataset, limit, "", "").miou}

        return validate

    def evaluate(self, model: nn.Module, fabric: Fabric, label: str, title: str = "base classes") -> BaseClassResult:
        """Evaluate the base classes; every process must call, each gets the whole result."""
        return self._score(model, fabric, self.dataset(training=False), self.settings.eval.images, label, title)

    def _score(
        self, model: nn.Module, fabric: Fabric, dataset: BaseClassDataset, limit: int, label: str, title: str
    ) -> BaseClassResult:
        count = min(limit or len(dataset), len(dataset))
        # Spread over the list: neighbours often show one class.
        chosen = [place * len(dataset) // count for place in range(count)]
        was_training = model.training
        model.eval()
        counts = torch.zeros(1 + self.base_count, 3, dtype=torch.int64)
        progress = self.progress(model, fabric, title, chosen=chosen)
        progress.carry([counts])
        mine = progress.mine(chosen)
        quiet = not title or not fabric.is_global_zero
        with progress, torch.inference_mode(), ProgressBar(title, len(mine), quiet=quiet) as bar:
            for index in mine:
                predicted, batch = self._predicted(model, fabric, dataset, index)
                counts += count_pixels(predicted, batch.labels[0], self.base_count)
                progress.counted(index, dict)
                bar.advance()
        model.train(was_training)
        if fabric.world_size > 1:
            counts = fabric.all_reduce(counts.to(fabric.device), reduce_op="sum").cpu()  # type: ignore[union-attr]
        data = self.settings.data
        fold = self.fold_classes(data.fold, dataset.source)
        return score_base_classes(
            counts,
            model=label,
            dataset=dataset.source.label,
            folds=f"{fold.name} ({fold.definition})",
            fold=data.fold,
            images=count,
            novel_images=self.novel_images,
            size=list(data.size),
            classes={number: dataset.source.classes[number] for number in fold.train},
        )

    @staticmethod
    def _predicted(
        model: nn.Module, fabric: Fabric, dataset: BaseClassDataset, index: int
    ) -> tuple[torch.Tensor, LabelMapBatch]:
        batch = dataset[index]
        with fabric.autocast():
            logits = model(batch.images.to(fabric.device))
        return logits[0].float().argmax(0).cpu(), batch

    def evaluate_run(
        self, model: nn.Module, untrained: nn.Module | None, fabric: Fabric, folder: Path, say: Any
    ) -> dict[str, Any]:
        """Evaluate the base classes, with the untrained model where there is one, and draw some images.

        Returns:
            what ``result.json`` shall say; ``finals`` are level lines for the curves.
        """
        if self.settings.eval.checkpoint == "best":
            model.load_state_dict(read_checkpoint(folder / "checkpoints" / "best.pt")["model"])
        with preserved_random_state():
            result = self.evaluate(model, fabric, self.settings.name)
            if fabric.is_global_zero:
                self.gallery(model, fabric, result, folder)
            found: dict[str, Any] = {"base_miou": result.miou, "base": result.as_json()}
            found["finals"] = {"base classes": result.miou}
            if untrained is not None:
                before = self.evaluate(untrained.to(fabric.device), fabric, f"{self.settings.name}, untrained")
                found["untrained_base_miou"] = before.miou
                say(f"untrained      {before.line()}")
        say(f"trained        {result.line()}")
        return found

    def run_files(self) -> dict[str, Any]:
        """What a run folder keeps of the data, by file name: the base classes in the order of the channels."""
        source = self.source()
        fold = self.fold_classes(self.settings.data.fold, source)
        return {"classes.json": {"background": 0, **{source.classes[c]: n for n, c in enumerate(fold.train, start=1)}}}

    def gallery(self, model: nn.Module, fabric: Fabric, result: BaseClassResult, folder: Path) -> list[Path]:
        """Draw ``grid.png``: image, truth and prediction of some images."""
        dataset, count = self.dataset(training=False), self.settings.eval.pictures
        if not count:
            return []
        was_training = model.training
        model.eval()
        rows = []
        for place in range(min(count, len(dataset))):
            index = place * len(dataset) // min(count, len(dataset))
            with torch.inference_mode():
                predicted, batch = self._predicted(model, fabric, dataset, index)
            image, truth = denormalise(batch.images[0]), batch.labels[0].numpy()
            agreed = float((predicted.numpy() == truth)[truth != 255].mean()) if (truth != 255).any() else 1.0
            rows.append(
                [
                    pictures.Tile(image, batch.names[0]),
                    pictures.Tile(pictures.overlay(image, truth), _names_in(truth, result)),
                    pictures.Tile(pictures.overlay(image, predicted.numpy()), f"{100 * agreed:.0f} % of pixels right"),
                ]
            )
        model.train(was_training)
        pictures.grid(rows, ["image", "base classes", "prediction"], result.line()).save(folder / "grid.png")
        return [folder / "grid.png"]


def _names_in(labels: Any, result: BaseClassResult) -> str:
    names = list(result.classes.values())
    shown = sorted({int(value) for value in labels.reshape(-1)} - {0, 255})
    return ", ".join(names[value - 1] for value in shown) or "no base class"
