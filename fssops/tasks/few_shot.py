"""Few-shot segmentation: episodes of training classes, evaluation on novel classes by a protocol, pictures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from lightning_fabric import Fabric
from torch import nn

from fssops.data import folds
from fssops.data.datasets.episodes import EpisodeDataset, RepeatedEpisodes
from fssops.data.episodes import EpisodeList
from fssops.data.few_shot_source import FewShotSource
from fssops.data.preparation import FewShotPreparation
from fssops.engine.settings import SettingsError
from fssops.engine.trainer import Validation
from fssops.evaluation.episode_pictures import Shown, episode_grid
from fssops.evaluation.episodes import (
    EpisodeTruth,
    LabelledEpisode,
    Outputs,
    count_supports,
    labelled_episodes,
    segment,
)
from fssops.evaluation.feature_cache import FeatureCache
from fssops.evaluation.metrics import metrics_for
from fssops.evaluation.metrics.metric import EpisodeSetting, MetricSet
from fssops.evaluation.results import FewShotResult, Result, best_and_worst
from fssops.protocols import PROTOCOLS, FewShotProtocol, find_protocol, protocol_of
from fssops.structures import Episode, FewShotBatch, move_to
from fssops.tasks.few_shot_settings import FewShotSettings
from fssops.tasks.folded_task import FoldedTask
from fssops.tasks.resumable_evaluation import count_items, in_evaluation
from fssops.tasks.task import Evaluation


@dataclass(frozen=True)
class NovelRuns:
    """The runs of an evaluation on the novel classes of a fold.

    Attributes:
        fold: its classes.
        protocol: as it draws from this data set.
        seeds: one a run.
        datasets: the episodes of each run.
    """

    fold: folds.FoldClasses
    protocol: FewShotProtocol
    seeds: list[int]
    datasets: list[EpisodeDataset]

    @property
    def classes(self) -> dict[int, str]:
        """Novel classes that have enough images: class id -> name."""
        names, dropped = self.datasets[0].source.classes, self.datasets[0].episodes.dropped
        return {number: names[number] for number in self.fold.test if number not in dropped}


class FewShotTask(FoldedTask):
    """A system that segments new classes from a few labelled images.

    Args:
        settings: the resolved recipe.

    Raises:
        SettingsError: the protocol does not exist.
    """

    settings_class: ClassVar[type[Any]] = FewShotSettings
    several = "few-shot systems"
    one = "a few-shot system"
    takes_supports = True
    prediction_options = frozenset({"way", "no_probability", "npz", "frames", "object", "threshold", "ignore"})
    title = "novel classes"
    collate = staticmethod(FewShotBatch.stack)
    unpack_batch = FewShotBatch
    predictions: ClassVar[tuple[str, ...]] = ("episode", "features")
    """What the system says of an episode, in the words of ``fssops.evaluation.metrics``."""

    def __init__(self, settings: FewShotSettings) -> None:
        super().__init__(settings)
        try:
            find_protocol(settings.eval.protocol)
        except ValueError as error:
            raise SettingsError(f"eval.{error}") from None
        self._novel_runs: dict[int, NovelRuns] = {}
        if settings.data.folds == "all":
            self.title = "trained classes"

    # -- data -------------------------------------------------------------------------------------------------

    @cached_property
    def preparation(self) -> FewShotPreparation:
        """How an image enters the network where nothing is augmented."""
        return FewShotPreparation(self.settings.data.size, self.settings.data.geometry)

    def data_demands(self) -> dict[str, Any]:
        """Objects that are gone at the network's size are counted too, and classes with too few images found."""
        data, demands = self.settings.data, super().data_demands()
        limits = replace(demands["limits"], preparation=self.preparation)
        return {**demands, "limits": limits, "min_area": data.min_area, "need": data.shots + data.queries}

    def training_data(self) -> tuple[Any, list[str]]:
        """Return the training episodes and lines that describe them."""
        data, steps = self.settings.data, self.settings.schedule.steps
        source, needed = self.source(), max(steps, 1) * self.settings.engine.batch_size
        fold = self.fold_classes(data.fold, source)
        seed = self.settings.engine.seed if data.seed is None else data.seed
        episodes = EpisodeList.draw(
            source,
            fold.train,
            ways=data.ways,
            shots=data.shots,
            queries=data.queries,
            episodes=min(needed, data.episodes or needed),
            seed=seed,
            draw=data.draw,
            min_area=data.min_area,
            avoid=fold.novel if data.drop_novel else (),
            too_few=data.too_few,
            fold=fold,
        )
        self.count_novel_images(source, fold)
        least = {"least_query": data.least_query, "least_support": data.least_support}
        dataset = self.episode_dataset(source, fold, episodes, augment=data.augment, seed=seed, **least)
        lines = [
            f"training data  {source.label}, {len(source.names)} images; {fold}: {len(fold.train)} training classes, "
            f"{data.ways}-way {data.shots}-shot, {data.queries} query, {data.size[0]} x {data.size[1]} pixels"
            + (f", novel images {self.novel_images}" if fold.novel else ""),
            f"episodes       {len(episodes)}, seed {seed}, list {episodes.hash[:8]}",
        ]
        if episodes.dropped:
            names = ", ".join(f"{source.classes[number]} ({count})" for number, count in episodes.dropped.items())
            lines.append(f"left out       classes with too few images: {names}")
        if not fold.novel:
            same = self.source(evaluation=True) is source
            lines.append(f"evaluation     no class is held out; scores are of {'the same' if same else 'other'} images")
        return RepeatedEpisodes(dataset) if len(episodes) < needed else dataset, lines

    def items_of_pass(self) -> int:
        """Images that training may draw."""
        data, source = self.settings.data, self.source()
        fold = self.fold_classes(data.fold, source)
        trained, avoided = set(fold.train), set(fold.novel if data.drop_novel else ())
        areas = source.areas().values()
        return sum(not trained.isdisjoint(of_image) and avoided.isdisjoint(of_image) for of_image in areas)

    def episode_dataset(
        self, source: FewShotSource, fold: folds.FoldClasses, episodes: EpisodeList, **options: Any
    ) -> EpisodeDataset:
        """Episodes as tensors; systems that learn the fold's base classes ask for these too."""
        data = self.settings.data
        rules = {
            "ignore_in_support": data.ignore_in_support,
            "other_ways": data.other_ways,
            "geometry": data.geometry,
        }
        return EpisodeDataset(source, episodes, data.size, **{**rules, **options})

    def novel_runs(self, fold: int) -> NovelRuns:
        """The runs of an evaluation, as protocol and settings have them; drawn once a fold."""
        if fold not in self._novel_runs:
            self._novel_runs[fold] = self._draw_novel_runs(fold)
        return self._novel_runs[fold]

    def _draw_novel_runs(self, fold: int) -> NovelRuns:
        rules, data = self.settings.eval, self.settings.data
        source = self.source(evaluation=True)
        fold_classes = self.fold_classes(fold, source)
        protocol = protocol_of(rules.protocol, source.format)
        if rules.min_area is not None:
            protocol = replace(protocol, min_area=rules.min_area)
        if rules.empty_support is not None:
            protocol = replace(protocol, empty_support=rules.empty_support)
        count = rules.runs or protocol.runs
        seeds = list(protocol.seeds_of(fold_classes.name, fold)[:count])
        if rules.seed is not None or len(seeds) < count:
            first = seeds[0] if rules.seed is None else rules.seed
            seeds = list(range(first, first + count))
        datasets = []
        for seed in seeds:
            episodes = EpisodeList.draw(
                source,
                fold_classes.test,
                ways=rules.ways or data.ways,
                shots=rules.shots or data.shots,
                queries=rules.queries,
                episodes=rules.episodes or protocol.episodes,
                seed=seed,
                too_few=data.too_few,
                fold=fold_classes,
                **protocol.draw_options(),
            )
            options = {"annotation": rules.annotation, "seed": seed, **protocol.dataset_options()}
            datasets.append(self.episode_dataset(source, fold_classes, episodes, **options))
        return NovelRuns(fold_classes, protocol, seeds, datasets)

    def check_evaluation(self) -> None:
        """Draw the episodes of the fold that is trained, and read the first."""
        self.novel_runs(self.settings.data.fold).datasets[0][0]

    # -- evaluation -------------------------------------------------------------------------------------------

    @property
    def rules(self) -> str:
        """The protocol."""
        return str(self.settings.eval.protocol)

    def evaluate(
        self, model: nn.Module, fabric: Fabric, label: str, title: str = "evaluate", fold: int | None = None
    ) -> Evaluation:
        """Evaluate the novel classes of a fold; every process must call, each gets the whole result."""
        started, fold = time.perf_counter(), self.settings.data.fold if fold is None else fold
        runs, rules = self.novel_runs(fold), self.settings.eval
        lists = [dataset.episodes for dataset in runs.datasets]
        decisive = {"lists": [episodes.hash for episodes in lists], "protocol": vars(runs.protocol), "fold": fold}
        metrics = self.count(model, fabric, runs.datasets, runs.protocol, list(runs.classes), title, decisive)
        result = FewShotResult(
            model=self.label_of(model, label),
            dataset=runs.datasets[0].source.label,
            measured=metrics.scores(),
            quality=metrics.best_first(),
            seconds=round(time.perf_counter() - started, 2),
            fold=fold,
            folds=f"{runs.fold.name} ({runs.fold.definition})",
            ways=lists[0].ways,
            shots=lists[0].shots,
            queries=lists[0].queries,
            episodes=len(lists[0]),
            seeds=runs.seeds,
            list_hashes=[episodes.hash for episodes in lists],
            protocol=rules.protocol,
            annotation=rules.annotation,
            size=list(self.settings.data.size),
            classes=runs.classes,
            min_area=rules.min_area or int(lists[0].options["min_area"]),
            own_min_area=rules.min_area is not None,
            novel_images=self.novel_images if runs.fold.novel else "",
            facts=metrics.facts,
            training_facts=self.training_facts,
        )
        return Evaluation(result, metrics)

    def label_of(self, model: Any, label: str) -> str:
        """What results call a model; systems whose score is not that of their own answer say so."""
        return label

    def validation(self, fabric: Fabric) -> Validation | None:
        """Return what scores episodes of training classes on images of the validation split, or None."""
        rules, data = self.settings.eval, self.settings.data
        if not rules.validation_episodes:
            return None
        source = self.source(evaluation=True, split=rules.validation_split)
        fold = self.fold_classes(data.fold, source)
        episodes = EpisodeList.draw(
            source,
            fold.train,
            ways=data.ways,
            shots=data.shots,
            episodes=rules.validation_episodes,
            seed=self.settings.engine.seed + 1,
            min_area=data.min_area,
            avoid=fold.novel if data.drop_novel else (),
            too_few="skip",
            fold=fold,
        )
        dataset = self.episode_dataset(source, fold, episodes)
        classes = [number for number in fold.train if number not in episodes.dropped]
        protocol = replace(PROTOCOLS["fssops"], size=self.preparation.compared_size)

        def measure(model: nn.Module, step: int = 0, limit: int | None = None) -> Mapping[str, float]:
            metrics = self.count(model, fabric, [dataset], protocol, classes, "", {}, limit)
            scores = metrics.metrics["few-shot"].scores().summary()
            return {"val/miou": scores["mIoU"], "val/fb_iou": scores["binary IoU"]}

        return Validation(measure, lambda model: measure(model, limit=1))

    def count(
        self,
        model: Any,
        fabric: Fabric,
        runs: Sequence[EpisodeDataset],
        protocol: FewShotProtocol,
        classes: Sequence[int],
        title: str,
        decisive: Mapping[str, Any],
        limit: int | None = None,
    ) -> MetricSet:
        """Count the episodes of runs.

        Args:
            model: on the device of ``fabric``.
            fabric: launched.
            runs: all of one length.
            protocol: rules of comparison.
            classes: ids that the episodes draw from.
            title: see :func:`fssops.tasks.resumable_evaluation.count_items`.
            decisive: the same.
            limit: count so many episodes alone; None counts all.
        """
        rules = self.settings.eval
        base_classes = len(runs[0].base_classes)
        with FeatureCache(model.encode, memory=rules.cache_mb << 20, disk=rules.cache_disk_mb << 20) as cache:
            setting = EpisodeSetting(protocol, len(runs), len(runs[0]), classes, base_classes, cache)
            metrics = metrics_for(self.predictions, setting)

            def count(number: int, item: LabelledEpisode) -> None:
                if not count_supports(metrics.facts, item.episode, protocol):
                    return
                episode = move_to(item.episode, fabric.device)
                with fabric.autocast():
                    outputs = self.outputs(model, cache, episode, item.truth)
                metrics.add(number, outputs, item.truth)

            count_items(
                self,
                model,
                fabric,
                title=title,
                numbers=range(len(runs) * len(runs[0]))[:limit],
                items=lambda numbers: labelled_episodes(runs, protocol, numbers, workers=rules.workers),
                count=count,
                metrics=metrics,
                decisive=decisive,
            )
        return metrics

    def outputs(self, model: Any, cache: FeatureCache, episode: Episode, truth: EpisodeTruth) -> Outputs:
        """What the system says of an episode, the parts that its metrics read included.

        Args:
            model: in evaluation mode.
            cache: of its features.
            episode: on the model's device.
            truth: gives the sizes; systems whose scores are bounds choose by it.
        """
        return segment(model, cache, episode, truth.sizes)

    def result_entries(self, trained: Result, before: Result | None) -> dict[str, Any]:
        """Scores of the novel classes."""
        assert isinstance(trained, FewShotResult)
        entries = {"miou": trained.mean_iou, "fb_iou": trained.fb_iou, "novel": trained.as_json()}
        if isinstance(before, FewShotResult):
            entries |= {"untrained_miou": before.mean_iou, "untrained": before.as_json()}
        return entries

    def gain_of(self, score: str) -> str:
        """The difference is reached on classes that training has not seen, unless it is for all."""
        all_trained = self.settings.data.folds == "all"
        return f"{score} on {'trained classes' if all_trained else 'classes never seen in training'}"

    @classmethod
    def evaluations(cls, tasks: Sequence[Any], fold: str | None) -> list[tuple[int, int | None]]:
        """Each model on its own fold, all on one fold, or one on all folds."""
        trained = [task.settings.data.fold for task in tasks]
        if fold is None:
            return list(enumerate(trained))
        if fold == "all":
            if len(tasks) == 1:
                return [(0, number) for number in range(4)]
            if sorted(trained) != [0, 1, 2, 3]:
                raise SettingsError(
                    f"--fold: all needs one run of each fold 0 to 3 (or a single model), got folds {trained}"
                )
            return sorted(enumerate(trained), key=lambda pair: pair[1])
        if fold not in ("0", "1", "2", "3"):
            raise SettingsError(f"--fold: fold must be 0, 1, 2, 3 or all, got {fold!r}")
        return [(place, int(fold)) for place in range(len(tasks))]

    # -- pictures and files -----------------------------------------------------------------------------------

    def write_episodes(self, fold: int, folder: Path) -> list[Path]:
        """Write the lists of episodes that were measured; return the files."""
        runs = self.novel_runs(fold)
        files = [folder / f"episodes-seed{seed}.json" for seed in runs.seeds]
        for file, dataset in zip(files, runs.datasets, strict=True):
            dataset.episodes.save(file)
        return files

    def write(
        self, evaluation: Evaluation, model: nn.Module, fabric: Fabric, folder: Path, before: nn.Module | None = None
    ) -> list[Path]:
        """Write the episode lists, ``grid.png`` (an episode of each class), ``best.png`` and ``worst.png``."""
        result = evaluation.result
        assert isinstance(result, FewShotResult)
        runs = self.novel_runs(result.fold)
        written = self.write_episodes(result.fold, folder)
        best, worst = best_and_worst(result.quality, self.settings.eval.pictures)
        groups = {
            "grid.png": (one_of_each_class(runs.datasets[0])[:6], self.title),
            "best.png": (best, "best episodes"),
            "worst.png": (worst, "worst episodes"),
        }
        for name, (numbers, title) in groups.items():
            if numbers:
                shown = self._shown(model, fabric, runs, numbers)
                earlier = self._shown(before, fabric, runs, numbers) if before is not None else None
                title = f"{result.model}: {title}, {result.setting()}"
                episode_grid(shown, result.classes, title, earlier).save(folder / name)
                written.append(folder / name)
        return written

    def _shown(self, model: Any, fabric: Fabric, runs: NovelRuns, numbers: Sequence[int]) -> list[Shown]:
        """Segment single episodes again, by their numbers through all runs."""
        shown = []
        with FeatureCache(model.encode, memory=0) as cache, in_evaluation(model), fabric.autocast():
            for number in numbers:
                run, index = divmod(number, len(runs.datasets[0]))
                episode = runs.datasets[run][index]
                outputs = segment(model, cache, move_to(episode, fabric.device))
                maps = [scores.float().argmax(0).cpu().numpy() for scores in next(iter(outputs.values()))]
                shown.append(Shown(episode, maps))
        return shown

    # -- prediction -------------------------------------------------------------------------------------------

    def python_predictor(self, model: nn.Module, label: str, size: int | None = None) -> Any:
        """Return a :class:`fssops.FewShotPredictor`."""
        from fssops.predictor import FITS, FewShotPredictor

        fit: Any = {geometry: fit for fit, geometry in FITS.items()}[self.settings.data.geometry]
        said = self.settings.data.size if "size" in self.settings.data.model_fields_set else None
        return FewShotPredictor(model, size=size or said, fit=fit)

    def predictor(self, model: nn.Module, label: str, options: Any) -> Any:
        """Return what segments pictures with the labelled images of ``options.supports``."""
        from fssops.tasks.few_shot_prediction import FewShotPrediction
        from fssops.tasks.prediction import writing

        predictor = self.python_predictor(model, label, options.size)
        probability = not options.no_probability
        mask_values = {name: getattr(options, name) for name in ("object", "threshold", "ignore")}
        return FewShotPrediction(
            predictor,
            options.supports,
            options.out,
            label,
            probability=probability,
            mask_values=mask_values,
            **writing(options),
        )


def one_of_each_class(dataset: EpisodeDataset) -> list[int]:
    """Index of the first episode of every class."""
    first: dict[int, int] = {}
    for index, spec in enumerate(dataset.episodes):
        first.setdefault(spec.classes[0], index)
    return list(first.values())
