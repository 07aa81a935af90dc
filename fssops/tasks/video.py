"""Video instance segmentation as the verbs run it: data from settings, validation, scores."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fssops.data import universal, video
from fssops.data.errors import ImageFileError
from fssops.engine.progress import ProgressBar
from fssops.engine.random_state import preserved_random_state
from fssops.engine.settings import SettingsError
from fssops.engine.trainer import Validate
from fssops.evaluation.video import Masks, VideoRecords, video_iou
from fssops.evaluation.video_results import VideoEvaluation, rows_of_records, write_submission
from fssops.run_lengths import encode
from fssops.structures import ImageBatch, InstanceResult
from fssops.tasks.fixed_classes import FixedClassTask, Say, run_result, unpacked_batch
from fssops.tasks.resumable_evaluation import all_states, to_plain
from fssops.tasks.video_settings import VideoSettings


def encoded(masks: Tensor) -> list[dict[str, Any]]:
    """Run lengths of bool masks [n, H, W]: what is kept of a video's masks while it is segmented."""
    return [encode(mask) for mask in masks.cpu().numpy()]


class VideoTask(FixedClassTask):
    """Builds what settings describe.

    Args:
        settings: the resolved recipe.

    Raises:
        SettingsError: a window that is not longer than what its clips share.
    """

    settings_class = VideoSettings
    collate = staticmethod(video.ClipItem.stack)
    batch_class = staticmethod(partial(unpacked_batch, ImageBatch))

    def __init__(self, settings: VideoSettings) -> None:
        super().__init__(settings)
        if 0 < self.window <= self.config.overlap:
            raise SettingsError(
                f"eval.window must be 0 or more than model.overlap ({self.config.overlap}), got {self.window}"
            )

    # -- data -------------------------------------------------------------------------------------------------

    def open_source(self, root: str | None, split: str, options: dict[str, Any]) -> video.VideoSource:
        """Open a split of the data set."""
        return video.open_source(self.settings.data.source, root, split=split, **options)

    def classes(self) -> universal.Classes:
        """The classes: of the data set where its files are at hand, else as published.

        Raises:
            SettingsError: neither is to be had.
        """
        known = video.known_classes(self.settings.data.source)
        if known is not None:
            return known
        try:
            classes: universal.Classes = self.source().classes
            return classes
        except (OSError, ValueError) as error:
            raise SettingsError(f"data: class names must be readable, got {error}") from None

    def training_data(self) -> tuple[video.TrainingClips, list[str]]:
        """Return the training clips and lines that describe them."""
        data = self.settings.data
        source = self.source()
        chain = universal.pipeline(data.augment, short_sides=data.short_sides, longest=data.longest)
        dataset = video.TrainingClips(source, chain, frames=data.frames, reach=data.reach)
        lines = [
            f"training data  {source.label}, {len(dataset)} videos, {len(source.classes)} classes, clips of "
            f"{data.frames} frames at most {data.reach} apart, augment {data.augment}"
        ]
        return dataset, lines

    # -- evaluation -------------------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        """Frames that are held at once; 0: whole videos."""
        own = self.settings.eval.window
        return int(self.config.window if own is None else own)

    def test_size(self) -> str:
        """Say at which size videos are tested, and in which clips."""
        rules = self.settings.eval
        own = "frames' own size" if not rules.short_side else f"short side {rules.short_side} (longest {rules.longest})"
        if not self.window:
            return f"{own}, whole videos"
        return f"{own}, clips of {self.window} frames that share {self.config.overlap}"

    def evaluate(
        self, model: nn.Module, fabric: Fabric, label: str, title: str = "evaluate", videos: int | None = None
    ) -> tuple[VideoEvaluation, VideoRecords]:
        """Segment and score the evaluation split; every process must call, each gets the whole result.

        Args:
            model: on the device of ``fabric``.
            fabric: launched.
            label: what to call the model.
            title: of the progress bar; "" shows none.
            videos: number of videos; None: as settings say.

        Returns:
            the scores, and what they were formed from.
        """
        rules, started = self.settings.eval, time.perf_counter()
        source = self.source(evaluation=True)
        numbers = self.chosen(rules.videos if videos is None else videos)
        progress = self.progress(model, fabric, title, numbers=numbers, names=source.names)
        mine = progress.mine(numbers)
        records = VideoRecords(len(source.classes))
        quality: dict[int, float] = {}
        was_training = model.training
        model.eval()
        quiet = not title or not fabric.is_global_zero
        with progress, ProgressBar(title, len(mine), quiet=quiet) as bar, torch.inference_mode():
            for number in mine:
                result = self.segment(model, fabric, source.names[number])
                quality[number] = count_video(records, source, source.names[number], number, result)
                progress.counted(number, lambda: to_plain({"videos": records.videos, "quality": quality}))
                bar.advance()
        model.train(was_training)
        if fabric.world_size > 1 or progress.done:
            for state in all_states({"videos": records.videos, "quality": dict(quality)}, progress, fabric):
                records.merge([state["videos"]])
                quality.update(state["quality"])
        evaluated = VideoEvaluation(
            model=label,
            dataset=source.label,
            videos=len(numbers),
            of=len(source.names),
            frames=sum(source.frames(source.names[number]) for number in numbers),
            test_size=self.test_size(),
            classes=source.classes.names,
            instances=records.scores() if source.has_truth else None,
            quality=sorted(quality.items(), key=lambda entry: (-entry[1], entry[0])),
            seconds=round(time.perf_counter() - started, 2),
        )
        return evaluated, records

    def segment(self, model: Any, fabric: Fabric, name: str) -> InstanceResult:
        """Segment one video; masks are run lengths."""
        source = self.source(evaluation=True)
        with fabric.autocast():
            result: InstanceResult = model.track(
                self.frames_ahead(name), source.size(name), keep=encoded, window=self.window
            )
        return result

    def frames_ahead(self, name: str) -> Iterator[Tensor]:
        """The frames of a video as the model sees them, in order, a few of them read ahead."""
        rules, source = self.settings.eval, self.source(evaluation=True)
        if not rules.workers or source.frames(name) <= 8:
            return video.seen_frames(source, name, rules.short_side, rules.longest)
        frames = _Frames(source, name, rules.short_side, rules.longest)
        return _checked(DataLoader(frames, batch_size=None, num_workers=rules.workers, prefetch_factor=4))

    def validation(self, fabric: Fabric) -> Validate | None:
        """Return a callback that scores the evaluation split (or a part of it) during training."""
        if not self.settings.engine.validate_every:
            return None
        if not self.source(evaluation=True).has_truth:
            raise SettingsError(
                f"eval.split must have truth for validation in training, got {self.source(evaluation=True).label} "
                "without; set engine.validate_every=0"
            )
        limit = self.settings.eval.validation_videos or self.settings.eval.videos

        def validate(model: nn.Module, step: int) -> Mapping[str, float]:
            scores = self.evaluate(model, fabric, self.settings.name, "", limit)[0].scores()
            return {f"val/{name.lower()}": value for name, value in scores.items()}

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
            trained, records = self.evaluate(model, fabric, label, "evaluate")
            if untrained is not None:
                untrained = untrained.to(fabric.device)
                before, _ = self.evaluate(untrained, fabric, f"{label}, untrained", "untrained model")
        self._write(trained, records, fabric, folder)
        return run_result(trained, before, say)

    def evaluate_into(
        self, folder: Path, model: nn.Module, fabric: Fabric, label: str
    ) -> tuple[VideoEvaluation, list[Path]]:
        """Evaluate a model and leave the submission and pictures in a folder; every process must call.

        Returns:
            the scores, and the files written by this process.
        """
        result, records = self.evaluate(model, fabric, label)
        return result, self._write(result, records, fabric, folder)

    def _write(self, result: VideoEvaluation, records: VideoRecords, fabric: Fabric, folder: Path) -> list[Path]:
        """Write ``submission.json`` and ``submission.zip`` in the official format, and the pictures."""
        from fssops.tasks.video_pictures import gallery  # it builds on this file

        if not fabric.is_global_zero:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        ids = [category.id for category in self.source(evaluation=True).classes.categories]
        files = write_submission(folder / "submission.json", rows_of_records(records, ids))
        return files + gallery(self, result, records, folder)


class _Frames(Dataset[Tensor | str]):
    """Frames of one video for loader processes; a failure travels as its message, so that it arrives unwrapped."""

    def __init__(self, source: video.VideoSource, name: str, short_side: int, longest: int) -> None:
        self.source, self.name, self.short_side, self.longest = source, name, short_side, longest

    def __len__(self) -> int:
        return self.source.frames(self.name)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            image = np.asarray(self.source.frame(self.name, index))
        except (OSError, ValueError) as error:
            return str(error)
        return universal.evaluation_item(image, self.name, self.short_side, self.longest).image


def _checked(frames: Iterable[Tensor | str]) -> Iterator[Tensor]:
    for frame in frames:
        if isinstance(frame, str):
            raise ImageFileError(frame)
        yield frame


def video_number(source: video.VideoSource, name: str, number: int) -> int:
    """Id of a video in results; its place in the split where the data set has no numbers."""
    identifier = source.video_id(name)
    return identifier if isinstance(identifier, int) else number


def true_tracks(source: video.VideoSource, name: str) -> list[tuple[int, Masks, bool, list[float | None]]]:
    """Class, run lengths, crowd and areas of the objects of a video."""
    found: list[tuple[int, Masks, bool, list[float | None]]] = []
    for track in source.tracks(name):
        masks = [track.mask(frame, *source.size(name)) for frame in range(source.frames(name))]
        runs = [None if mask is None else encode(mask) for mask in masks]
        found.append((track.label, runs, track.crowd, track.areas))
    return found


def count_video(
    records: VideoRecords, source: video.VideoSource, name: str, number: int, result: InstanceResult
) -> float:
    """Add one video to the records; returns how well it went: mean over objects of the best score times overlap."""
    detections = list(zip(result.labels.tolist(), result.scores.tolist(), result.masks, strict=True))
    truth = true_tracks(source, name) if source.has_truth else []
    records.add(video_number(source, name, number), source.frames(name), detections, truth)
    best = []
    for label, masks, crowd, _ in truth:
        if not crowd:
            same = [(score, found) for of_class, score, found in detections if of_class == label]
            best.append(max((score * video_iou(found, masks) for score, found in same), default=0.0))
    return round(float(np.mean(best)), 6) if best else 0.0
