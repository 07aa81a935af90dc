"""Few-shot segmentation as the verbs run it: data from settings, validation, evaluation by protocol, pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from fssops.data import folds
from fssops.data.episode_dataset import EpisodeDataset, RepeatedEpisodes
from fssops.data.episodes import EpisodeList
from fssops.data.few_shot_source import FewShotSource
from fssops.data.protocols import protocol_of
from fssops.engine.checkpoints import read_checkpoint
from fssops.engine.evaluation_progress import without
from fssops.engine.progress import ProgressBar
from fssops.engine.random_state import preserved_random_state
from fssops.engine.settings import SettingsError
from fssops.engine.trainer import Validate
from fssops.evaluation import episode_pictures
from fssops.evaluation.feature_cache import FeatureCache
from fssops.evaluation.fewshot import EvaluationCounts, count_runs, segment
from fssops.evaluation.parts import Observer
from fssops.evaluation.protocols import PROTOCOLS, FewShotProtocol, find_protocol
from fssops.evaluation.results import FewShotResult, score
from fssops.structures import FewShotBatch, move_to
from fssops.tasks.fewshot_settings import FewShotSettings
from fssops.tasks.folded_task import FoldedTask

Say = Callable[[str], None]


class FewShotTask(FoldedTask):
    """Builds what settings describe.

    Args:
        settings: the resolved recipe.

    Raises:
        SettingsError: the protocol does not exist.
    """

    settings_class: type[Any] = FewShotSettings
    collate = staticmethod(FewShotBatch.stack)
    batch_class = FewShotBatch

    def __init__(self, settings: FewShotSettings) -> None:
        super().__init__(settings)
        try:
            self.protocol = find_protocol(settings.eval.protocol)
        except ValueError as error:
            raise SettingsError(f"eval.{error}") from None

    # -- data -------------------------------------------------------------------------------------------------

    def training_data(self) -> tuple[EpisodeDataset | RepeatedEpisodes, list[str]]:
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
            avoid=fold.test if data.drop_novel else (),
            too_few=data.too_few,
            fold=fold,
        )
        least = {"least_query": data.least_query, "least_support": data.least_support}
        dataset = self._dataset(source, fold, episodes, augment=data.augment, seed=seed, **least)
        lines = [
            f"training data  {source.label}, {len(source.names)} images; {fold}: {len(fold.train)} training classes, "
            f"{data.ways}-way {data.shots}-shot, {data.queries} query, {data.size[0]} x {data.size[1]} pixels, "
            f"novel images {self.novel_images}",
            f"episodes       {len(episodes)}, seed {seed}, list {episodes.hash[:8]}",
        ]
        if episodes.dropped:
            names = ", ".join(f"{source.classes[number]} ({count})" for number, count in episodes.dropped.items())
            lines.append(f"left out       classes with too few images: {names}")
        return RepeatedEpisodes(dataset) if len(episodes) < needed else dataset, lines

    def _dataset(
        self, source: FewShotSource, fold: folds.FoldClasses, episodes: EpisodeList, **options: Any
    ) -> EpisodeDataset:
        """Episodes as tensors; systems that learn the fold's base classes override it."""
        data = self.settings.data
        rules = {
            "ignore_in_support": data.ignore_in_support,
            "other_ways": data.other_ways,
            "geometry": data.geometry,
        }
        return EpisodeDataset(source, episodes, data.size, **{**rules, **options})

    def novel_runs(self, fold: int) -> tuple[folds.FoldClasses, list[EpisodeDataset], list[int]]:
        """Return the fold, the episodes of each run, and the runs' seeds, as the protocol has them."""
        rules, data, protocol = self.settings.eval, self.settings.data, self.protocol
        source = self.source(evaluation=True)
        fold_classes = self.fold_classes(fold, source)
        drawn = protocol_of(protocol.data, source.format)
        if rules.min_area is not None:
            drawn = replace(drawn, min_area=rules.min_area)
        count = rules.runs or protocol.runs
        seeds = list(drawn.seeds_of(fold_classes.name, fold)[:count])
        if rules.seed is not None or len(seeds) < count:
            first = seeds[0] if rules.seed is None else rules.seed
            seeds = list(range(first, first + count))
        runs = []
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
                **drawn.draw_options(),
            )
            options = {"annotation": rules.annotation, "seed": seed, **drawn.dataset_options()}
            runs.append(self._dataset(source, fold_classes, episodes, **options))
        return fold_classes, runs, seeds

    # -- evaluation -------------------------------------------------------------------------------------------

    def evaluate(
        self, model: nn.Module, fabric: Fabric, fold: int, label: str, title: str = "evaluate"
    ) -> FewShotResult:
        """Evaluate a fold; every process must call, each gets the whole result."""
        fold_classes, runs, seeds = self.novel_runs(fold)
        present = {number: runs[0].source.classes[number] for number in fold_classes.test}
        lists = [run.episodes for run in runs]
        for number in lists[0].dropped:
            present.pop(number)
        return self._score(
            model,
            fabric,
            runs,
            self.protocol,
            present,
            title,
            model=label,
            dataset=runs[0].source.label,
            fold=fold,
            folds=f"{fold_classes.name} ({fold_classes.definition})",
            ways=lists[0].ways,
            shots=lists[0].shots,
            queries=lists[0].queries,
            episodes=len(lists[0]),
            seeds=seeds,
            list_hashes=[episodes.hash for episodes in lists],
            annotation=self.settings.eval.annotation,
            min_area=self.settings.eval.min_area or int(lists[0].options["min_area"]),
            own_min_area=self.settings.eval.min_area is not None,
            novel_images=self.novel_images,
            size=list(self.settings.data.size),
        )

    def validation(self, fabric: Fabric) -> Validate | None:
        """Return a callback that scores episodes of training classes on images of the evaluation split, or None."""
        rules, data = self.settings.eval, self.settings.data
        if not rules.validation_episodes:
            return None
        source = self.source(evaluation=True)
        fold = self.fold_classes(data.fold, source)
        episodes = EpisodeList.draw(
            source,
            fold.train,
            ways=data.ways,
            shots=data.shots,
            episodes=rules.validation_episodes,
            seed=self.settings.engine.seed + 1,
            min_area=data.min_area,
            avoid=fold.test if data.drop_novel else (),
            too_few="skip",
            fold=fold,
        )
        run = self._dataset(source, fold, episodes)
        classes = {number: source.classes[number] for number in fold.train if number not in episodes.dropped}
        setting = {
            "model": self.settings.name,
            "dataset": source.label,
            "fold": data.fold,
            "folds": str(fold),
            "ways": data.ways,
            "shots": data.shots,
            "queries": 1,
            "episodes": len(episodes),
            "seeds": [self.settings.engine.seed + 1],
            "list_hashes": [episodes.hash],
            "annotation": "mask",
            "size": list(data.size),
        }

        # A letterboxed image is compared on its square: its original size alone would be stretched.
        protocol = PROTOCOLS["msanet" if data.geometry == "letterbox" else "fssops"]

        def validate(model: nn.Module, step: int) -> Mapping[str, float]:
            result = self._score(model, fabric, [run], protocol, classes, "", **setting)
            return {"val/miou": result.mean_iou, "val/fb_iou": result.fb_iou}

        return validate

    def _score(
        self,
        model: nn.Module,
        fabric: Fabric,
        runs: Sequence[EpisodeDataset],
        protocol: FewShotProtocol,
        classes: Mapping[int, str],
        title: str,
        /,
        **setting: Any,
    ) -> FewShotResult:
        rules, started = self.settings.eval, time.perf_counter()
        was_training = model.training
        model.eval()
        quiet = not title or not fabric.is_global_zero
        observer = self.observer(model, runs, protocol, classes)
        progress = self.progress(model, fabric, title, protocol=vars(protocol), **without(setting, "model"))
        progress.carry(observer.tensors() if observer else [])
        total = len(progress.mine(range(len(runs) * len(runs[0]))))
        with (
            progress,
            FeatureCache(model.encode, memory=rules.cache_mb << 20, disk=rules.cache_disk_mb << 20) as cache,  # type: ignore[arg-type]
            ProgressBar(title, total, quiet=quiet) as bar,
        ):
            counts = self.counts(
                model,
                runs,
                protocol,
                cache,
                observer,
                list(classes),
                device=fabric.device,
                original_labels=lambda run, index: [torch.from_numpy(truth) for truth in runs[run].query_truth(index)],
                rank=fabric.global_rank,
                world_size=fabric.world_size,
                workers=rules.workers,
                autocast=fabric.autocast,
                advance=bar.advance,
                progress=progress,
            )
        model.train(was_training)
        reduce = _unchanged
        if fabric.world_size > 1:
            reduce = partial(_sum_over_processes, fabric)
        counts = counts.summed(reduce)
        if observer:
            setting["parts"] = observer.scores(reduce)
        return score(counts, protocol, classes, seconds=round(time.perf_counter() - started, 2), **setting)

    def observer(
        self,
        model: nn.Module,
        runs: Sequence[EpisodeDataset],
        protocol: FewShotProtocol,
        classes: Mapping[int, str],
    ) -> Observer | None:
        """What counts the predictions of a system's parts beside the system's own; None for most systems."""
        return None

    def counts(
        self,
        model: nn.Module,
        runs: Sequence[EpisodeDataset],
        protocol: FewShotProtocol,
        cache: FeatureCache,
        observer: Observer | None,
        classes: list[int],
        **options: Any,
    ) -> EvaluationCounts:
        """Count the episodes of this process; ``options`` are those of :func:`count_runs`."""
        observe = observer.observe if observer else None
        return count_runs(observer or model, runs, protocol, cache, classes=classes, observe=observe, **options)  # type: ignore[arg-type]

    def evaluate_run(
        self, model: nn.Module, untrained: nn.Module | None, fabric: Fabric, folder: Path, say: Say
    ) -> dict[str, Any]:
        """Evaluate novel classes, with the untrained model on the same episodes where there is one.

        Returns:
            what ``result.json`` shall say; ``finals`` are level lines for the curves.
        """
        fold, label = self.settings.data.fold, self.settings.name
        if self.settings.eval.checkpoint == "best":
            model.load_state_dict(read_checkpoint(folder / "checkpoints" / "best.pt")["model"])
        found: dict[str, Any] = {}
        before = None
        with preserved_random_state():
            trained = self.evaluate(model, fabric, fold, label, "novel classes")
            found.update(miou=trained.mean_iou, fb_iou=trained.fb_iou, novel=trained.as_json())
            found["finals"] = {"novel": trained.mean_iou}
            if untrained is not None:
                untrained = untrained.to(fabric.device)
                before = self.evaluate(untrained, fabric, fold, f"{label}, untrained", "untrained model")
                found.update(untrained_miou=before.mean_iou, untrained=before.as_json())
                found["gain"] = trained.mean_iou - before.mean_iou
                found["finals"]["novel, untrained"] = before.mean_iou
            if fabric.is_global_zero:
                self.gallery(model, fabric, trained, folder, untrained)
        if before is not None:
            say(f"untrained      {before.line()}")
        say(f"trained        {trained.line()}")
        if before is not None:
            say(f"gain           {100 * found['gain']:+.2f} points of mIoU on classes never seen in training")
        return found

    def run_files(self) -> dict[str, Any]:
        """What a run folder keeps of the data, by file name: nothing, the classes come with the supports."""
        return {}

    # -- pictures ---------------------------------------------------------------------------------------------

    def predictions(self, model: nn.Module, fabric: Fabric, places: Sequence[tuple[int, int]], fold: int) -> list[Any]:
        """Segment single episodes again, for pictures: each place is (run, episode)."""
        _, runs, _ = self.novel_runs(fold)
        was_training = model.training
        model.eval()
        shown = []
        with FeatureCache(model.encode, memory=0) as cache, torch.inference_mode(), fabric.autocast():  # type: ignore[arg-type]
            for run, index in places:
                episode = runs[run][index]
                logits = segment(model, cache, move_to(episode, fabric.device))  # type: ignore[arg-type]
                maps = [scores.float().argmax(0).cpu().numpy() for scores in logits]
                shown.append(episode_pictures.Shown(episode, maps))
        model.train(was_training)
        return shown

    def gallery(
        self, model: nn.Module, fabric: Fabric, result: FewShotResult, folder: Path, before: nn.Module | None = None
    ) -> list[Path]:
        """Draw ``grid.png`` (an episode of each class) and, where asked for, the best and the worst episodes.

        Args:
            model: as evaluated.
            fabric: launched.
            result: of this model.
            folder: where the pictures go.
            before: the untrained model, shown in a column of its own.
        """
        _, runs, _ = self.novel_runs(result.fold)
        first_of_class: dict[int, tuple[int, int]] = {}
        for index, spec in enumerate(runs[0].episodes):
            first_of_class.setdefault(spec.classes[0], (0, index))
        best, worst = result.best_and_worst(self.settings.eval.pictures)
        groups = {"grid.png": (list(first_of_class.values())[:6], "novel classes"), "best.png": (best, "best episodes")}
        groups["worst.png"] = (worst, "worst episodes")
        written = []
        for name, (places, title) in groups.items():
            if not places:
                continue
            shown = self.predictions(model, fabric, places, result.fold)
            earlier = self.predictions(before, fabric, places, result.fold) if before is not None else None
            picture = episode_pictures.episode_grid(
                shown, result.classes, f"{result.model}: {title}, {result.setting()}", earlier
            )
            picture.save(folder / name)
            written.append(folder / name)
        return written


def _unchanged(flat: Tensor) -> Tensor:
    return flat


def _sum_over_processes(fabric: Fabric, flat: Tensor) -> Tensor:
    return fabric.all_reduce(flat.to(fabric.device), reduce_op="sum")  # type: ignore[return-value]
