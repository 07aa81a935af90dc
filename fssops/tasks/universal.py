"""Semantic, instance and panoptic segmentation as the verbs run them: data from settings, validation, scores."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from fssops.data import universal
from fssops.engine.progress import ProgressBar
from fssops.engine.random_state import preserved_random_state
from fssops.engine.settings import SettingsError
from fssops.engine.trainer import Validate
from fssops.evaluation.universal import UniversalCounts, UniversalResult, score
from fssops.models.mask2former import Mask2Former
from fssops.structures import ImageBatch, move_to
from fssops.tasks.fixed_classes import FixedClassTask, Say, run_result, unpacked_batch
from fssops.tasks.resumable_evaluation import all_states, to_plain
from fssops.tasks.universal_counting import TestItem, TestItems, count_image
from fssops.tasks.universal_layers import layer_watcher, measured
from fssops.tasks.universal_pictures import gallery
from fssops.tasks.universal_settings import UniversalSettings


class UniversalTask(FixedClassTask):
    """Builds what settings describe.

    Args:
        settings: the resolved recipe.
    """

    settings_class = UniversalSettings
    collate = staticmethod(universal.UniversalItem.stack)
    batch_class = staticmethod(partial(unpacked_batch, ImageBatch))

    # -- data -------------------------------------------------------------------------------------------------

    def open_source(self, root: str | None, split: str, options: dict[str, Any]) -> universal.UniversalSource:
        """Open a split of the data set."""
        data = self.settings.data
        return universal.open_source(data.source, root, split=split, kind=data.truth, **options)

    def check_classes(self, source: universal.UniversalSource) -> None:
        """Compare a data set's classes with the model's, and the countable ones where the model is panoptic.

        Raises:
            SettingsError: they are not the same.
        """
        super().check_classes(source)
        things, countable = getattr(self.config, "things", None), source.classes.things
        known = tuple(range(self.config.num_classes)) if things is None else tuple(things)
        if "panoptic" in self.model_tasks and known != countable:
            raise SettingsError(
                f"model.things must list the countable classes of {source.label}, {list(countable)}, "
                f"got {'every class' if things is None else list(things)}"
            )

    def classes(self) -> universal.Classes:
        """The classes: of the data set where its files are at hand, else as published.

        Raises:
            SettingsError: neither is to be had.
        """
        data = self.settings.data
        known = universal.known_classes(data.source, data.truth)
        if known is not None and data.source in ("generated", "camvid", "cityscapes", "ade20k"):
            return known
        try:
            classes: universal.Classes = self.source().classes
            return classes
        except (OSError, ValueError) as error:
            if known is not None and len(known) == self.config.num_classes:
                return known
            raise SettingsError(f"data: class names must be readable, got {error}") from None

    @property
    def model_tasks(self) -> tuple[str, ...]:
        """What the model can be asked for."""
        return tuple(getattr(self.config, "tasks", ("semantic",)))

    def tasks(self) -> list[str]:
        """What is scored: as settings say, else what the model does and the truth allows.

        Raises:
            SettingsError: nothing, or something that the truth does not allow.
        """
        source, asked = self.source(evaluation=True), self.settings.eval.tasks
        can = [task for task in self.model_tasks if task != "general" and source.offers(task)]  # type: ignore[arg-type]
        wrong = [task for task in asked if not source.offers(task)]
        if wrong or not (asked or can):
            raise SettingsError(
                f"eval.tasks must be tasks that {source.label} has truth for ({source.kind}), "
                f"got {', '.join(wrong or self.model_tasks)}"
            )
        return list(asked or can)

    def training_data(self) -> tuple[universal.TrainingDataset, list[str]]:
        """Return the training images and lines that describe them."""
        data = self.settings.data
        source = self.source()
        if data.augment == "none" and not data.short_sides:
            chain = universal.pipeline("none")
        else:
            chain = universal.pipeline(
                data.augment,
                short_sides=data.short_sides,
                longest=data.longest,
                crop=data.crop,
                category_share=data.category_share,
                pad=data.pad,
                side=data.side,
                scales=data.scales,
            )
        dataset = universal.TrainingDataset(
            source,
            data.truth,
            chain,
            keep_empty=data.keep_empty,
            label_maps=self.settings.model.name == "per_pixel_baseline",
        )
        left_out = len(source.names) - len(dataset)
        lines = [
            f"training data  {source.label}, {len(dataset)} images"
            + (f" ({left_out} without an object left out)" if left_out else "")
            + f", {len(source.classes)} classes, {data.truth} masks, augment {data.augment}"
        ]
        return dataset, lines

    # -- evaluation -------------------------------------------------------------------------------------------

    def test_size(self) -> str:
        """Say at which size images are tested."""
        rules = self.settings.eval
        own = "images' own size" if not rules.short_side else f"short side {rules.short_side} (longest {rules.longest})"
        if rules.scales or rules.flip:
            sides = "/".join(map(str, rules.scales)) or str(rules.short_side or "own")
            own += f", semantic averaged over short sides {sides}{' and flips' if rules.flip else ''}"
        return own

    def evaluate(
        self, model: nn.Module, fabric: Fabric, label: str, title: str = "evaluate", images: int | None = None
    ) -> UniversalResult:
        """Score the evaluation split; every process must call, each gets the whole result.

        Args:
            model: on the device of ``fabric``.
            fabric: launched.
            label: what to call the model.
            title: of the progress bar; "" shows none.
            images: number of images; None: as settings say.
        """
        rules, started = self.settings.eval, time.perf_counter()
        source, tasks = self.source(evaluation=True), self.tasks()
        numbers = self.chosen(rules.images if images is None else images)
        progress = self.progress(model, fabric, title, numbers=numbers, names=source.names, tasks=tasks)
        mine = progress.mine(numbers)
        detections = int(getattr(self.config, "detections", 100))
        watched = self.measured_model(model)
        layers = 0 if watched is None else len(watched.transformer_decoder.layers)
        counts = UniversalCounts.start(tasks, len(source.classes), detections, layers)
        was_training = model.training
        model.eval()
        loader = torch.utils.data.DataLoader(
            TestItems(source, mine, rules.short_side, rules.longest),
            batch_size=None,
            num_workers=rules.workers if len(mine) > 8 else 0,
        )
        quiet = not title or not fabric.is_global_zero
        with progress, ProgressBar(title, len(mine), quiet=quiet) as bar, torch.inference_mode():
            for item in loader:
                watch = None
                if watched is not None and counts.layers is not None:
                    watch = layer_watcher(watched, counts.layers, item, self.settings.data.truth, source.classes.things)
                result = self.segment(model, fabric, item, tasks, watch)
                count_image(counts, item, result, source.classes.things, boundary=rules.boundary)
                progress.counted(item.number, lambda: to_plain(counts.state()))
                bar.advance()
        model.train(was_training)
        if fabric.world_size > 1 or progress.done:
            counts.merge(all_states(counts.state(), progress, fabric))
        return score(
            counts,
            source.classes.things,
            boundary=rules.boundary,
            model=label,
            dataset=source.label,
            images=len(numbers),
            of=len(source.names),
            test_size=self.test_size(),
            classes=source.classes.names,
            seconds=round(time.perf_counter() - started, 2),
        )

    def measured_model(self, model: nn.Module) -> Mask2Former | None:
        """The model whose layers are measured; None where settings do not ask for it.

        Raises:
            SettingsError: it has none to measure, or the data set no truth of the kind that was trained.
        """
        if not self.settings.eval.layer_measures:
            return None
        source, kind = self.source(evaluation=True), self.settings.data.truth
        if not source.offers(kind):
            raise SettingsError(f"eval.layer_measures must be off: {source.label} has no {kind} truth to match")
        return measured(model)

    def segment(self, model: Any, fabric: Fabric, item: TestItem, tasks: Sequence[str], watch: Any = None) -> Any:
        """Segment one image; semantic scores are averaged over sizes and flips where settings ask for it.

        ``watch`` is given the predictions of all heads at the tested size.
        """
        rules = self.settings.eval
        batch = move_to(universal.UniversalItem.stack([item.seen]), fabric.device)
        averaged = "semantic" in tasks and bool(rules.scales or rules.flip)
        others = [task for task in tasks if not (averaged and task == "semantic")]
        with fabric.autocast():
            if watch is not None:
                result = model.segment(batch, others, watch)[0]
            else:
                result = model.segment(batch, others)[0] if others else None
            if averaged:
                from fssops.models.universal.augmented_inference import augmented_semantic
                from fssops.structures import SegmentationResult

                image = batch.images[0]
                result = result or SegmentationResult()
                result.semantic = augmented_semantic(
                    model,
                    image,
                    item.seen.output_size,
                    short_sides=rules.scales or [min(image.shape[-2:])],
                    long_side=rules.scales_longest,
                    flip=rules.flip,
                )
        return result

    def validation(self, fabric: Fabric) -> Validate | None:
        """Return a callback that scores the evaluation split (or a part of it) during training."""
        if not self.settings.engine.validate_every:
            return None
        limit = self.settings.eval.validation_images or self.settings.eval.images

        def validate(model: nn.Module, step: int) -> Mapping[str, float]:
            scores = self.evaluate(model, fabric, self.settings.name, "", limit).scores()
            return {f"val/{name.replace(' ', '_').lower()}": value for name, value in scores.items()}

        return validate

    def evaluate_run(
        self, model: nn.Module, untrained: nn.Module | None, fabric: Fabric, folder: Path, say: Say
    ) -> dict[str, Any]:
        """Evaluate what training has made, with the untrained model beside it where there is one.

        Returns:
            what ``result.json`` shall say; ``finals`` are level lines for the curves.
        """
        self.take_best(model, folder)
        label, before = self.settings.name, None
        with preserved_random_state():
            trained = self.evaluate(model, fabric, label, "evaluate")
            if untrained is not None:
                untrained = untrained.to(fabric.device)
                before = self.evaluate(untrained, fabric, f"{label}, untrained", "untrained model")
            if fabric.is_global_zero:
                gallery(self, model, fabric, trained, folder, untrained)
        return run_result(trained, before, say)

    def evaluate_into(
        self, folder: Path, model: nn.Module, fabric: Fabric, label: str
    ) -> tuple[UniversalResult, list[Path]]:
        """Evaluate a model and leave pictures in a folder; every process must call.

        Returns:
            the scores, and the files written by this process.
        """
        result = self.evaluate(model, fabric, label)
        if not fabric.is_global_zero:
            return result, []
        folder.mkdir(parents=True, exist_ok=True)
        return result, gallery(self, model, fabric, result, folder)
