"""A base learner: semantic segmentation of a fold's base classes, scored by their mean IoU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor, nn

from fssops.data.datasets.base_classes import BaseClassDataset
from fssops.data.few_shot_source import FewShotSource
from fssops.engine.settings import SettingsError
from fssops.engine.trainer import Validation
from fssops.evaluation.metrics import metrics_for
from fssops.evaluation.metrics.metric import ClassSetting, MetricSet
from fssops.evaluation.results import BaseClassResult, Result
from fssops.normalisation import denormalise
from fssops.pictures import Tile, grid, overlay_ways
from fssops.structures import IGNORE, LabelMapBatch, require_numbers
from fssops.tasks.base_class_settings import BaseClassSettings
from fssops.tasks.class_names import CLASS_FILE, compare_names
from fssops.tasks.folded_task import FoldedTask
from fssops.tasks.resumable_evaluation import count_items, evenly_spread, in_evaluation
from fssops.tasks.task import Evaluation


class BaseClassTask(FoldedTask):
    """A system that learns the base classes of a fold; a second stage starts from it."""

    settings_class = BaseClassSettings
    several = "base learners"
    one = "a base learner"
    no_folds = "a base learner knows the classes of its own fold alone"
    title = "base classes"
    rules = "base"
    collate = staticmethod(LabelMapBatch.stack)
    unpack_batch = LabelMapBatch

    @cached_property
    def evaluation_data(self) -> BaseClassDataset:
        """Images of the evaluation split."""
        return self._dataset(training=False)

    def _dataset(self, *, training: bool, split: str | None = None) -> BaseClassDataset:
        data, source = self.settings.data, self.source(evaluation=not training, split=split)
        fold = self.fold_classes(data.fold, source)
        self.check_base_classes(fold)
        return BaseClassDataset(
            source,
            fold.train,
            data.size,
            augment=data.augment if training else "none",
            geometry=data.geometry,
            avoid=fold.novel if training and data.drop_novel else (),
        )

    def training_data(self) -> tuple[BaseClassDataset, list[str]]:
        """Return the training images and lines that describe them."""
        data, dataset = self.settings.data, self._dataset(training=True)
        fold = self.fold_classes(data.fold, dataset.source)
        self.count_novel_images(dataset.source, fold)
        novel = "left out" if data.drop_novel else "background"
        return dataset, [
            f"training data  {dataset.source.label}, {len(dataset)} of {len(dataset.source.names)} images; {fold}: "
            f"{len(fold.train)} base classes, novel classes {novel}, {data.size[0]} x {data.size[1]} pixels"
        ]

    def check_evaluation(self) -> None:
        """Read the first image of the evaluation split."""
        self.evaluation_data[0]

    def validation(self, fabric: Fabric) -> Validation | None:
        """Return what scores base classes on images of the validation split, or None."""
        if not self.settings.engine.validate_every:
            return None
        split = self.settings.eval.validation_split
        dataset = self.evaluation_data if split is None else self._dataset(training=False, split=split)

        def measure(model: nn.Module, step: int = 0, limit: int | None = None) -> Mapping[str, float]:
            limit = self.settings.eval.validation_images if limit is None else limit
            scores = self._count(dataset, model, fabric, limit, "").scores()
            return {"val/base_miou": next(iter(scores["base classes"].summary().values()))}

        return Validation(measure, lambda model: measure(model, limit=1))

    def evaluate(
        self, model: nn.Module, fabric: Fabric, label: str, title: str = "evaluate", fold: int | None = None
    ) -> Evaluation:
        """Evaluate the base classes; every process must call, each gets the whole result."""
        started, dataset, data = time.perf_counter(), self.evaluation_data, self.settings.data
        metrics = self._count(dataset, model, fabric, self.settings.eval.images, title)
        classes = self.fold_classes(data.fold, dataset.source)
        result = BaseClassResult(
            model=label,
            dataset=dataset.source.label,
            measured=metrics.scores(),
            quality=metrics.best_first(),
            seconds=round(time.perf_counter() - started, 2),
            folds=f"{classes.name} ({classes.definition})",
            fold=data.fold,
            images=len(evenly_spread(len(dataset), self.settings.eval.images)),
            novel_images=self.novel_images,
            facts=metrics.facts,
            training_facts=self.training_facts,
            size=list(data.size),
            classes={number: dataset.source.classes[number] for number in classes.train},
        )
        return Evaluation(result, metrics)

    def _count(self, dataset: BaseClassDataset, model: nn.Module, fabric: Fabric, limit: int, title: str) -> MetricSet:
        numbers = evenly_spread(len(dataset), limit)
        metrics = metrics_for(["base classes"], ClassSetting(self.config.base_classes))

        def count(number: int, batch: LabelMapBatch) -> None:
            metrics.add(number, self._predicted(model, fabric, batch), batch.labels[0])

        count_items(
            self,
            model,
            fabric,
            title=title,
            numbers=numbers,
            items=lambda mine: (dataset[number] for number in mine),
            count=count,
            metrics=metrics,
            decisive={"numbers": numbers},
        )
        return metrics

    @staticmethod
    def _predicted(model: nn.Module, fabric: Fabric, batch: LabelMapBatch) -> Tensor:
        with fabric.autocast():
            logits = model(batch.images.to(fabric.device))
        require_numbers(logits, "evaluation of base classes")
        return logits[0].float().argmax(0).cpu()  # type: ignore[no-any-return]

    def result_entries(self, trained: Result, before: Result | None) -> dict[str, Any]:
        """Scores of the base classes."""
        entries = {"base_miou": trained.main[1], "base": trained.as_json()}
        return entries if before is None else {**entries, "untrained_base_miou": before.main[1]}

    def gain_of(self, score: str) -> str:
        """The score is that of base classes."""
        return f"{score} on base classes"

    def run_files(self) -> dict[str, Any]:
        """The base classes in the order of the channels."""
        return {CLASS_FILE: {name: channel for channel, name in self._channels(self.source()).items()}}

    def compare_with_model(self, source: FewShotSource) -> None:
        """See that channels stand for the base classes that the model's run had."""
        if self.trained_names is not None:
            compare_names(self.trained_names, self._channels(source), source.label)

    def _channels(self, source: FewShotSource) -> dict[int, str]:
        fold = self.fold_classes(self.settings.data.fold, source)
        return {0: "background", **{n: source.classes[number] for n, number in enumerate(fold.train, start=1)}}

    def write(
        self, evaluation: Evaluation, model: nn.Module, fabric: Fabric, folder: Path, before: nn.Module | None = None
    ) -> list[Path]:
        """Draw ``grid.png``: image, truth and prediction of some images."""
        result = evaluation.result
        assert isinstance(result, BaseClassResult)
        count, path = self.settings.eval.pictures, folder / "grid.png"
        if not count:
            return []
        rows = []
        for number in evenly_spread(len(self.evaluation_data), count):
            batch = self.evaluation_data[number]
            with in_evaluation(model):
                predicted = self._predicted(model, fabric, batch).numpy()
            image, truth = denormalise(batch.images[0]), batch.labels[0].numpy()
            counted = truth != IGNORE
            agreed = float((predicted == truth)[counted].mean()) if counted.any() else 1.0
            names = list(result.classes.values())
            shown = [names[value - 1] for value in sorted({*truth.ravel().tolist()} - {0, IGNORE})]
            rows.append(
                [
                    Tile(image, batch.names[0]),
                    Tile(overlay_ways(image, truth), ", ".join(shown) or "no base class"),
                    Tile(overlay_ways(image, predicted), f"{100 * agreed:.0f} % of pixels right"),
                ]
            )
        grid(rows, ["image", "base classes", "prediction"], result.line()).save(path)
        return [path]

    def predictor(self, model: nn.Module, label: str, options: Any) -> Any:
        """Refuse: a base learner is a part of MSANet.

        Raises:
            SettingsError: always.
        """
        raise SettingsError(
            f"--checkpoint: {self.settings.model.name} is the base learner of another system, got it alone; "
            "use one of msanet"
        )
