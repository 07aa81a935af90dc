"""Universal systems: semantic, instance and panoptic segmentation of a data set's classes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader

from fssops.data.augmentation.chains import universal_chain
from fssops.data.check_facts import Limits, facts_of
from fssops.data.datasets.universal import TrainingDataset, UniversalItem, check_size, target_at
from fssops.data.few_shot_source import FewShotSource
from fssops.data.layouts import known_classes, open_data
from fssops.data.preparation import UniversalPreparation
from fssops.data.repeat_factors import repeat_factors
from fssops.data.source import ImageSource
from fssops.engine.sampling import pass_length
from fssops.engine.settings import SettingsError
from fssops.engine.trainer import Validation
from fssops.evaluation.confusion_picture import confusion_picture
from fssops.evaluation.metrics import metrics_for
from fssops.evaluation.metrics.metric import ClassSetting, MetricSet
from fssops.evaluation.regions import result_regions, truth_regions
from fssops.evaluation.results import Result, UniversalResult, best_and_worst, main_task
from fssops.losses.point_sources import RandomPoints
from fssops.models.universal.augmented_inference import augmented_semantic
from fssops.pictures import Tile, enlarged_overlay, grid
from fssops.structures import ImageBatch, LayerOutputs, MaskPredictions, MaskTargets, SegmentationResult, move_to
from fssops.tasks.class_names import CLASS_FILE, compare_names
from fssops.tasks.resumable_evaluation import count_items, evenly_spread, in_evaluation
from fssops.tasks.task import Evaluation, Task
from fssops.tasks.universal_settings import UniversalSettings
from fssops.truth import Classes, Truth

TILE = 256
"""Side of a picture in a grid, pixels."""

SCORE_NAMES = {"panoptic": "PQ", "instance": "overlap", "semantic": "mIoU"}


def unpack_batch(**values: Any) -> ImageBatch:
    """Rebuild a batch from the plain values of a replay file."""
    if "clips" in values:  # as batches of videos were written before they were batches of images
        values["images"] = values.pop("clips")
    if values["targets"] is not None:
        values["targets"] = [MaskTargets(**target) for target in values["targets"]]
    if values.get("output_sizes") is not None:
        values["output_sizes"] = [(int(height), int(width)) for height, width in values["output_sizes"]]
    return ImageBatch(**values)


def segment_with_layers(
    model: Any, batch: ImageBatch, tasks: Sequence[str], target: MaskTargets, seed: int
) -> SegmentationResult:
    """The results of a batch of one image, with the outputs of all layers and how each would be matched in training.

    Args:
        model: a system with measurable layers.
        batch: the image.
        tasks: what the result holds.
        target: masks at the size of the image in the batch.
        seed: of the points that masks are compared at: every image has its own, whatever was measured before it.
    """
    outputs: list[LayerOutputs] = []
    size = (int(batch.images[0].shape[-2]), int(batch.images[0].shape[-1]))

    def watch(predictions: MaskPredictions) -> None:
        device = predictions.class_logits.device
        points = RandomPoints(device, torch.Generator(device).manual_seed(seed))
        matches = model.criterion.match(predictions, [target], points)
        outputs.append(LayerOutputs(predictions, [(head[0].queries, head[0].targets) for head in matches], size))

    result: SegmentationResult = model.segment(batch, tasks, watch)[0]
    result.layers = outputs[0]
    return result


class TestItem:
    """An image as the model sees it, its number in the split, and its truth."""

    __test__ = False  # not a test, whatever pytest makes of the name

    def __init__(self, number: int, prepared: UniversalItem, truth: Truth) -> None:
        self.number, self.prepared, self.truth = number, prepared, truth


class TestItems:
    """Test images by place, with their truth, for loader processes.

    Args:
        source: of the evaluation split.
        numbers: positions in ``source.names``.
        preparation: of an image.
    """

    __test__ = False

    def __init__(self, source: ImageSource, numbers: Sequence[int], preparation: UniversalPreparation) -> None:
        self.source, self.numbers, self.preparation = source, list(numbers), preparation

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> TestItem:
        if not 0 <= place < len(self.numbers):
            raise IndexError(place)
        number = self.numbers[place]
        name = self.source.names[number]
        prepared, truth = self.preparation(np.asarray(self.source.image(name)), name), self.source.truth(name)
        check_size(self.source, name, prepared.output_size, (truth.height, truth.width))
        return TestItem(number, prepared, truth)


class UniversalTask(Task):
    """A system whose classes are those of a data set.

    Args:
        settings: the resolved recipe.
    """

    settings_class = UniversalSettings
    several = "universal systems"
    one = "a universal system"
    prediction_options = frozenset({"task", "score", "npz", "frames"})
    collate = staticmethod(UniversalItem.stack)
    unpack_batch = staticmethod(unpack_batch)
    items: ClassVar[str] = "images"
    """What an evaluation goes through, and the setting that limits their number."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self._sources: dict[str, Any] = {}

    # -- data -------------------------------------------------------------------------------------------------

    @property
    def truth(self) -> Any:
        """Which form of truth the data set is opened for."""
        return self.settings.data.truth

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
            source = open_data(data.source, root or None, split=split, truth=self.truth, **options)
            self.check_classes(source)
            trained = self.trained_names
            if trained is None and self._sources:
                trained = dict(enumerate(next(iter(self._sources.values())).classes.names))
            compare_names(trained or {}, dict(enumerate(source.classes.names)), source.label)
            self._sources[key] = source
        return self._sources[key]

    def check_classes(self, source: Any) -> None:
        """Compare a data set's classes with the model's, and the countable ones where the model is panoptic.

        Raises:
            SettingsError: they are not the same.
        """
        if self.config.num_classes != len(source.classes):
            raise SettingsError(
                f"model.num_classes must be the number of classes of {source.label}, {len(source.classes)}, "
                f"got {self.config.num_classes}"
            )
        if "panoptic" in self.model_tasks and self.config.thing_classes != frozenset(source.classes.things):
            things = self.config.things
            raise SettingsError(
                f"model.things must list the countable classes of {source.label}, {list(source.classes.things)}, "
                f"got {'every class' if things is None else list(things)}"
            )

    def classes(self) -> Classes:
        """The classes of the model: those that it says it was trained for, of its data set, or as published.

        Raises:
            SettingsError: none are to be had, or their number is not the model's.
        """
        if self.trained_classes is None:
            classes = self._classes_of_data()
        else:
            classes = Classes.from_rows(self.trained_classes.get("classes", ()), "classes of the model", things=False)
        if len(classes) != self.config.num_classes:
            raise SettingsError(
                f"model.num_classes must be the number of classes ({len(classes)}), got {self.config.num_classes}"
            )
        return classes

    def _classes_of_data(self) -> Classes:
        try:
            classes: Classes = self.source().classes
        except (OSError, ValueError) as error:
            published = known_classes(self.settings.data.source, self.truth)
            if published is None or len(published) != self.config.num_classes:
                raise SettingsError(f"data: class names must be readable, got {error}") from None
            return published
        return classes

    @property
    def model_tasks(self) -> tuple[str, ...]:
        """What the model was trained for."""
        return tuple(task for task in self.config.tasks if task != "general")

    @property
    def possible_tasks(self) -> tuple[str, ...]:
        """What the model can be asked for."""
        return tuple(self.config.possible_tasks)

    def tasks(self) -> list[str]:
        """What is scored: as settings say, else what the model was trained for and the truth allows.

        Raises:
            SettingsError: nothing, or something that the truth does not allow.
        """
        source, asked = self.source(evaluation=True), list(self.settings.eval.tasks)
        possible = [task for task in self.model_tasks if source.offers(task)]
        wrong = [task for task in asked if not source.offers(task)]
        if wrong or not (asked or possible):
            raise SettingsError(
                f"eval.tasks must be tasks that {source.label} has truth for ({source.kind}), "
                f"got {', '.join(wrong or self.model_tasks)}"
            )
        return asked or possible

    def preparation(self, short_side: int | None = None) -> UniversalPreparation:
        """How an image enters the network in evaluation and prediction.

        Args:
            short_side: instead of the settings'.
        """
        rules = self.settings.eval
        return UniversalPreparation(rules.short_side if short_side is None else short_side, rules.longest)

    def training_data(self) -> tuple[Any, list[str]]:
        """Return the training images and lines that describe them."""
        data, source = self.settings.data, self.source()
        chain = universal_chain(
            data.augment,
            short_sides=data.short_sides,
            longest=data.longest,
            crop=data.crop,
            category_share=data.category_share,
            pad=data.pad,
            side=data.side,
            scales=data.scales,
        )
        dataset = TrainingDataset(
            source, data.truth, chain, keep_empty=data.keep_empty, label_maps=self.config.trains_on_label_maps
        )
        repeated = ""
        if data.rare_classes:
            areas = FewShotSource(source).areas()
            dataset.repeats = repeat_factors([areas[name].keys() for name in dataset.names], data.rare_classes)
            repeated = f", {pass_length(dataset.repeats)} a pass with repeats for rare classes"
        left_out = len(source.names) - len(dataset)
        lines = [
            f"training data  {source.label}, {len(dataset)} images"
            + (f" ({left_out} without an object left out)" if left_out else "")
            + repeated
            + self.count_objects(dataset.crowds)
            + f", {len(source.classes)} classes, {data.truth} masks, augment {data.augment}"
        ]
        return dataset, lines

    @property
    def queries(self) -> int:
        """To how many objects of an image or a video the model can answer; 0 where it labels pixels alone."""
        return 0 if self.config.trains_on_label_maps else int(self.config.num_queries)

    def count_objects(self, crowds: list[list[bool]]) -> str:
        """Count what can be learnt from of the objects of each image or video; the words for it.

        Args:
            crowds: whether each object is a crowd region; empty where the truth has no objects.
        """
        self.training_facts = facts_of(crowds, Limits(queries=self.queries))
        return f", {sum(of_item.count(False) for of_item in crowds)} objects to learn from" if crowds else ""

    def data_demands(self) -> dict[str, Any]:
        """Objects beyond the model's queries are counted."""
        return {**super().data_demands(), "truth": self.truth, "limits": Limits(queries=self.queries)}

    def run_files(self) -> dict[str, Any]:
        """The classes, for prediction elsewhere."""
        return {CLASS_FILE: self.source().classes.as_json()}

    def check_evaluation(self) -> None:
        """See that there is something to score, and read the first item."""
        self.tasks()
        TestItems(self.source(evaluation=True), self.numbers(1), self.preparation())[0]

    # -- evaluation -------------------------------------------------------------------------------------------

    @property
    def rules(self) -> str:
        """Which masks were trained."""
        return str(self.settings.data.truth)

    def numbers(self, limit: int) -> list[int]:
        """Numbers of the items that are evaluated: all, or ``limit`` of them evenly spread."""
        return evenly_spread(len(self.source(evaluation=True).names), limit)

    def test_size(self) -> str:
        """Say at which size images are tested."""
        rules, size = self.settings.eval, "images' own size"
        if rules.short_side:
            size = f"short side {rules.short_side} (longest {rules.longest})"
        if rules.scales or rules.flip:
            sides = "/".join(map(str, rules.scales)) or str(rules.short_side or "own")
            size += f", semantic averaged over short sides {sides}{' and flips' if rules.flip else ''}"
        return size

    def evaluate(
        self, model: nn.Module, fabric: Fabric, label: str, title: str = "evaluate", fold: int | None = None
    ) -> Evaluation:
        """Score the evaluation split; every process must call, each gets the whole result."""
        started, numbers = time.perf_counter(), self.numbers(getattr(self.settings.eval, self.items))
        metrics = self.count(model, fabric, numbers, title)
        result = self.result(
            numbers,
            model=label,
            dataset=self.source(evaluation=True).label,
            measured=metrics.scores(),
            quality=metrics.best_first(),
            of=len(self.source(evaluation=True).names),
            test_size=self.test_size(),
            classes=self.source(evaluation=True).classes.names,
            seconds=round(time.perf_counter() - started, 2),
            facts=metrics.facts,
            training_facts=self.training_facts,
        )
        return Evaluation(result, metrics)

    def result(self, numbers: Sequence[int], **common: Any) -> Result:
        """The result of some images."""
        things = list(self.source(evaluation=True).classes.things)
        return UniversalResult(images=len(numbers), things=things, **common)

    def validation(self, fabric: Fabric) -> Validation | None:
        """Return what scores the validation split, or a part of it, during training."""
        rules, chooser = self.settings.eval, self.chooser()
        if not self.settings.engine.validate_every:
            return None
        limit = getattr(rules, f"validation_{self.items}") or getattr(rules, self.items)

        def measure(model: nn.Module, step: int = 0, limit: int = limit) -> Mapping[str, float]:
            scores = chooser.count(model, fabric, chooser.numbers(limit), "").scores().values()
            summary = {name: value for one in scores for name, value in one.summary().items()}
            return {f"val/{name.replace(' ', '_').lower()}": value for name, value in summary.items()}

        return Validation(measure, lambda model: measure(model, limit=1))

    def chooser(self) -> UniversalTask:
        """The task whose evaluation split is the one that the best checkpoint is chosen by."""
        rules = self.settings.eval
        if rules.validation_split is None:
            return self
        split = rules.model_copy(update={"split": rules.validation_split})
        task = type(self)(self.settings.model_copy(update={"eval": split}))
        task._sources = self._sources
        return task

    def count(self, model: Any, fabric: Fabric, numbers: Sequence[int], title: str) -> MetricSet:
        """Count the images of some numbers."""
        rules, source, tasks = self.settings.eval, self.source(evaluation=True), self.tasks()
        layers = self._measured_layers()
        setting = ClassSetting(
            len(source.classes), source.classes.things, self.config.detections, rules.boundary, layers
        )
        scored = [*tasks, "layers"] if layers else tasks
        metrics = metrics_for(scored, setting, main_task(tasks))

        def count(number: int, item: TestItem) -> None:
            with fabric.autocast():
                result = self.segment_item(model, item.prepared, tasks, item if layers else None)
            metrics.add(number, result, item.truth)
            if self.truth != "semantic" and source.offers(self.truth):
                crowds = item.truth.crowds(self.truth, source.classes.things)
                metrics.facts.add_objects(crowds.count(False), self.queries)

        count_items(
            self,
            model,
            fabric,
            title=title,
            numbers=numbers,
            items=lambda mine: self._loaded(source, mine),
            count=count,
            metrics=metrics,
            decisive={"numbers": list(numbers), "names": source.names, "tasks": tasks},
        )
        return metrics

    def _loaded(self, source: ImageSource, numbers: list[int]) -> Iterable[TestItem]:
        items = TestItems(source, numbers, self.preparation())
        workers = self.settings.eval.workers if len(numbers) > 8 else 0
        return DataLoader(items, batch_size=None, num_workers=workers)  # type: ignore[arg-type]

    def _measured_layers(self) -> int:
        """Number of the decoder's layers that are measured; 0 where settings do not ask for it.

        Raises:
            SettingsError: the model has none to measure, or the data set no truth of the kind that was trained.
        """
        if not self.settings.eval.layer_measures:
            return 0
        source = self.source(evaluation=True)
        if not source.offers(self.truth):
            raise SettingsError(f"eval.layer_measures must be off: {source.label} has no {self.truth} truth to match")
        if not self.config.measurable_layers:
            raise SettingsError(
                "eval.layer_measures must be off but for mask2former and mp_former, whose layers attend inside the "
                f"masks of those before, got {self.settings.model.name}"
            )
        return int(self.config.measurable_layers)

    def segment_item(
        self, model: Any, prepared: UniversalItem, tasks: Sequence[str], measured: TestItem | None = None
    ) -> SegmentationResult:
        """Segment one image; semantic scores are averaged over sizes and flips where settings ask for it.

        Args:
            model: in evaluation mode.
            prepared: see :meth:`preparation`.
            tasks: what the result holds.
            measured: the image with its truth, where the decoder's layers are measured too.
        """
        rules = self.settings.eval
        batch = move_to(UniversalItem.stack([prepared]), next(model.parameters()).device)
        averaged = "semantic" in tasks and bool(rules.scales or rules.flip)
        others = [task for task in tasks if not (averaged and task == "semantic")]
        target = None
        if measured is not None:
            size = (int(prepared.image.shape[-2]), int(prepared.image.shape[-1]))
            things = self.source(evaluation=True).classes.things
            target = move_to(target_at(measured.truth, self.truth, size, things), batch.images[0].device)
        if target is not None and measured is not None:
            result = segment_with_layers(model, batch, others, target, measured.number)
        else:
            result = model.segment(batch, others)[0] if others else SegmentationResult()
        if averaged:
            image = batch.images[0]
            result.semantic = augmented_semantic(
                model,
                image,
                prepared.output_size,
                short_sides=rules.scales or [min(image.shape[-2:])],
                long_side=rules.scales_longest,
                flip=rules.flip,
            )
        return result

    # -- pictures and files -----------------------------------------------------------------------------------

    def write(
        self, evaluation: Evaluation, model: nn.Module, fabric: Fabric, folder: Path, before: nn.Module | None = None
    ) -> list[Path]:
        """Draw ``grid.png``, ``best.png`` and ``worst.png``, and ``confusion.png`` where label maps were scored."""
        result = evaluation.result
        assert isinstance(result, UniversalResult)
        numbers = sorted(number for number, _ in result.quality)
        if not numbers:
            return []
        best, worst = best_and_worst(result.quality, self.settings.eval.pictures)
        spread = numbers[:: max(1, len(numbers) // 6)][:6]
        groups = {
            "grid.png": (spread, "test images"),
            "best.png": (best, "best images"),
            "worst.png": (worst, "worst images"),
        }
        written = []
        for name, (shown, title) in groups.items():
            if shown:
                self._picture(model, fabric, result, shown, title, before).save(folder / name)
                written.append(folder / name)
        if result.confusion is not None:
            written.append(folder / "confusion.png")
            title = f"{result.model}; {result.dataset}"
            confusion_picture(np.array(result.confusion), result.classes, written[-1], title)
        return written

    def _picture(
        self,
        model: nn.Module,
        fabric: Fabric,
        result: UniversalResult,
        numbers: Sequence[int],
        title: str,
        before: nn.Module | None,
    ) -> Any:
        source, task = self.source(evaluation=True), main_task(result.tasks)
        quality, rows = dict(result.quality), []
        models = [model] if before is None else [model, before]
        for item in map(TestItems(source, numbers, self.preparation()).__getitem__, range(len(numbers))):
            image = np.asarray(source.image(source.names[item.number]))
            regions = [truth_regions(item.truth, task, source.classes)]
            regions += [self._predicted_regions(one, fabric, item, task) for one in models]
            captions = ["", f"{SCORE_NAMES[task]} {100 * quality[item.number]:.0f} %", ""]
            drawn = [Tile(enlarged_overlay(image, r, TILE), c) for r, c in zip(regions, captions, strict=False)]
            rows.append([Tile(image, item.prepared.name), *drawn])
        headings = ["image", "truth", "prediction", "before training"][: 2 + len(models)]
        return grid(rows, headings, f"{result.model}: {title}, {result.setting()}", side=TILE)

    def _predicted_regions(self, model: nn.Module, fabric: Fabric, item: TestItem, task: str) -> Any:
        with in_evaluation(model), fabric.autocast():
            result = self.segment_item(model, item.prepared, [task])
        # A model that has just begun to learn is sure of nothing; its best guesses still say what it does.
        return result_regions(result, task, self.source(evaluation=True).classes, at_least=3)

    # -- prediction -------------------------------------------------------------------------------------------

    def python_predictor(self, model: nn.Module, label: str, size: int | None = None) -> Any:
        """Return a :class:`fssops.UniversalPredictor`."""
        from fssops.fixed_class_predictors import UniversalPredictor

        return UniversalPredictor(self, model, label, size)

    def predictor(self, model: nn.Module, label: str, options: Any) -> Any:
        """Return what segments pictures and frames of videos."""
        from fssops.tasks.prediction import writing
        from fssops.tasks.universal_prediction import UniversalPrediction

        wrong = [name for name in options.task or () if name not in self.possible_tasks]
        if wrong:
            raise SettingsError(
                f"--task: must be among {', '.join(self.possible_tasks)} for this model, got {wrong[0]}"
            )
        predictor = self.python_predictor(model, label, options.size)
        predictor.tasks = options.task or predictor.tasks
        return UniversalPrediction(predictor, options.out, least_score=options.score, **writing(options))
