"""Semantic, instance and panoptic segmentation as the verbs run them: data from settings, validation, scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from fssops.data import universal
from fssops.engine.checkpoints import read_checkpoint
from fssops.engine.progress import ProgressBar
from fssops.engine.random_state import preserved_random_state
from fssops.engine.settings import SettingsError
from fssops.engine.trainer import Validate
from fssops.evaluation.universal import UniversalCounts, UniversalResult, percent, score
from fssops.models import create_config
from fssops.models.mask2former import Mask2Former
from fssops.structures import ImageBatch, MaskTargets, move_to
from fssops.tasks.keeping import Keeping, all_states, to_plain
from fssops.tasks.universal_counting import TestItem, TestItems, count_image
from fssops.tasks.universal_layers import layer_watcher, measured
from fssops.tasks.universal_pictures import gallery
from fssops.tasks.universal_settings import UniversalSettings

Say = Callable[[str], None]


def unpacked_batch(
    images: Any, targets: Any, output_sizes: Any, names: Any, seeds: Any = (), share: Any = None
) -> ImageBatch:
    """Rebuild a batch from the plain values of a replay file."""
    rebuilt = None if targets is None else [MaskTargets(**target) for target in targets]
    sizes = None if output_sizes is None else [(int(size[0]), int(size[1])) for size in output_sizes]
    return ImageBatch(images, rebuilt, sizes, names, list(seeds), share)


class UniversalTask(Keeping):
    """Builds what settings describe.

    Args:
        settings: the resolved recipe.
    """

    settings_class = UniversalSettings
    collate = staticmethod(universal.UniversalItem.stack)
    batch_class = staticmethod(unpacked_batch)

    def __init__(self, settings: UniversalSettings) -> None:
        self.settings = settings
        self.config = create_config(settings.model.name, settings.model.options)
        self._sources: dict[str, universal.UniversalSource] = {}

    # -- data -------------------------------------------------------------------------------------------------

    def source(self, *, evaluation: bool = False) -> universal.UniversalSource:
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
            source = universal.open_source(data.source, root or None, split=split, kind=data.truth, **options)
            self._check_classes(source)
            self._sources[key] = source
        return self._sources[key]

    def _check_classes(self, source: universal.UniversalSource) -> None:
        metadata, config = source.metadata, self.config
        if config.num_classes != len(metadata):
            raise SettingsError(
                f"model.num_classes must be the number of classes of {source.label}, {len(metadata)}, "
                f"got {config.num_classes}"
            )
        things = getattr(config, "things", None)
        if "panoptic" in self.model_tasks and tuple(things or range(config.num_classes)) != metadata.things:
            raise SettingsError(
                f"model.things must list the countable classes of {source.label}, {list(metadata.things)}, "
                f"got {'every class' if things is None else list(things)}"
            )

    def classes(self) -> universal.Metadata:
        """The classes: of the data set where its files are at hand, else as published.

        Raises:
            SettingsError: neither is to be had.
        """
        data = self.settings.data
        known = universal.known_classes(data.source, data.truth)
        if known is not None and data.source in ("generated", "camvid", "cityscapes", "ade20k"):
            return known
        try:
            return self.source().metadata
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
            + f", {len(source.metadata)} classes, {data.truth} masks, augment {data.augment}"
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

    def chosen(self, limit: int) -> list[int]:
        """Numbers of the evaluated images: all, or ``limit`` of them evenly spread."""
        total = len(self.source(evaluation=True).names)
        count = total if not limit else min(limit, total)
        return [index * total // count for index in range(count)]

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
        counts = UniversalCounts.start(tasks, len(source.metadata), detections, layers)
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
                    watch = layer_watcher(
                        watched, counts.layers, item, self.settings.data.truth, source.metadata.things
                    )
                result = self.segment(model, fabric, item, tasks, watch)
                count_image(counts, item, result, source.metadata.things, boundary=rules.boundary)
                progress.counted(item.number, lambda: to_plain(counts.state()))
                bar.advance()
        model.train(was_training)
        if fabric.world_size > 1 or progress.done:
            gathered = _gathered(counts.state(), fabric.world_size) if fabric.world_size > 1 else None
            counts.merge(all_states(counts.state(), gathered, progress, fabric))
        return score(
            counts,
            source.metadata.things,
            boundary=rules.boundary,
            model=label,
            dataset=source.label,
            images=len(numbers),
            of=len(source.names),
            test_size=self.test_size(),
            classes=source.metadata.names,
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
                from fssops.models.mask_classification.augmented_inference import augmented_semantic
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
        if self.settings.eval.checkpoint == "best":
            model.load_state_dict(read_checkpoint(folder / "checkpoints" / "best.pt")["model"])
        label, before = self.settings.name, None
        with preserved_random_state():
            trained = self.evaluate(model, fabric, label, "evaluate")
            if untrained is not None:
                untrained = untrained.to(fabric.device)
                before = self.evaluate(untrained, fabric, f"{label}, untrained", "untrained model")
            if fabric.is_global_zero:
                gallery(self, model, fabric, trained, folder, untrained)
        name, value = trained.main
        found: dict[str, Any] = {"scores": trained.scores(), "trained": trained.as_json(), "finals": {name: value}}
        if before is not None:
            earlier = before.main[1]
            found |= {"untrained": before.as_json(), "gain": value - earlier}
            found["finals"][f"{name}, untrained"] = earlier
            say(f"untrained      {before.line()}")
        say(f"trained        {trained.line()}")
        if before is not None:
            say(f"gain           {percent(value - before.main[1])} points of {name}")
        return found

    def run_files(self) -> dict[str, Any]:
        """What a run folder keeps of the data, by file name: the classes, for prediction elsewhere."""
        return {"classes.json": self.source().metadata.as_json()}


def _gathered(state: dict[str, Any], world_size: int) -> list[dict[str, Any]]:
    found: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(found, state)
    return found
