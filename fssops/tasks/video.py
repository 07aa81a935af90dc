"""Video instance segmentation: universal segmentation with time as one more axis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fssops.data.augmentation.chains import universal_chain
from fssops.data.datasets.clips import ClipItem, TrainingClips
from fssops.data.errors import ImageFileError
from fssops.data.preparation import UniversalPreparation
from fssops.data.source import VideoSource
from fssops.engine.settings import SettingsError
from fssops.engine.trainer import Validation
from fssops.evaluation.metrics import metrics_for
from fssops.evaluation.metrics.metric import ClassSetting, MetricSet
from fssops.evaluation.regions import frame_regions
from fssops.evaluation.results import Result, VideoEvaluation, best_and_worst
from fssops.evaluation.submissions import recorded_rows, write_submission
from fssops.pictures import Tile, enlarged_overlay, grid
from fssops.run_lengths import encode
from fssops.structures import InstanceResult
from fssops.tasks.resumable_evaluation import count_items
from fssops.tasks.task import Evaluation
from fssops.tasks.universal import UniversalTask
from fssops.tasks.video_settings import VideoSettings
from fssops.truth import VideoTruth

TILE = 224
"""Side of a frame in a picture, pixels."""

COLUMNS = 5
"""Frames of a video in a picture."""


def encoded(masks: Tensor) -> list[dict[str, Any]]:
    """Run lengths of bool masks [n, H, W]: what is kept of a video's masks while it is segmented."""
    return [encode(mask) for mask in masks.cpu().numpy()]


class VideoTask(UniversalTask):
    """A system that follows the objects of a data set's classes through videos.

    Args:
        settings: the resolved recipe.

    Raises:
        SettingsError: a window that is not longer than what its clips share.
    """

    settings_class = VideoSettings  # type: ignore[assignment]
    several = "video systems"
    one = "a video system"
    prediction_options = frozenset({"task", "score", "zip"})
    collate = staticmethod(ClipItem.stack)  # type: ignore[assignment]
    items = "videos"
    truth = "video"
    rules = "video"
    model_tasks = ("instance",)
    possible_tasks = ("instance",)

    def __init__(self, settings: VideoSettings) -> None:
        super().__init__(settings)
        if 0 < self.window <= self.config.overlap:
            raise SettingsError(
                f"eval.window must be 0 or more than model.overlap ({self.config.overlap}), got {self.window}"
            )

    # -- data -------------------------------------------------------------------------------------------------

    def training_data(self) -> tuple[Any, list[str]]:
        """Return the training clips and lines that describe them."""
        data, source = self.settings.data, self.source()
        chain = universal_chain(data.augment, short_sides=data.short_sides, longest=data.longest)
        dataset = TrainingClips(source, chain, frames=data.frames, reach=data.reach)
        lines = [
            f"training data  {source.label}, {len(dataset)} videos{self.count_objects(dataset.crowds)}, "
            f"{len(source.classes)} classes, clips of "
            f"{data.frames} frames at most {data.reach} apart, augment {data.augment}"
        ]
        return dataset, lines

    def check_evaluation(self) -> None:
        """Read the first frame and the objects of the first video."""
        source = self.source(evaluation=True)
        source.frame(source.names[0], 0)
        self._truth(source, 0)

    # -- evaluation -------------------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        """Frames that are held at once; 0: whole videos."""
        window = self.settings.eval.window
        return int(self.config.window if window is None else window)

    def test_size(self) -> str:
        """Say at which size videos are tested, and in which clips."""
        rules, size = self.settings.eval, "frames' own size"
        if rules.short_side:
            size = f"short side {rules.short_side} (longest {rules.longest})"
        if not self.window:
            return f"{size}, whole videos"
        return f"{size}, clips of {self.window} frames that share {self.config.overlap}"

    def result(self, numbers: Sequence[int], **common: Any) -> Result:
        """The result of some videos; a split without truth has no scores."""
        source = self.source(evaluation=True)
        if not source.has_truth:
            common["measured"] = {}
        frames = sum(source.frames(source.names[number]) for number in numbers)
        return VideoEvaluation(videos=len(numbers), frames=frames, **common)

    def validation(self, fabric: Fabric) -> Validation | None:
        """Return what scores the validation split, or a part of it, during training.

        Raises:
            SettingsError: the split has no truth.
        """
        if self.settings.engine.validate_every:
            source = self.chooser().source(evaluation=True)
            if not source.has_truth:
                raise SettingsError(
                    f"eval.split must have truth for validation in training, got {source.label} without; name another "
                    "as eval.validation_split, or set engine.validate_every=0"
                )
        return super().validation(fabric)

    def count(self, model: Any, fabric: Fabric, numbers: Sequence[int], title: str) -> MetricSet:
        """Segment the videos of some numbers and count them."""
        source = self.source(evaluation=True)
        metrics = metrics_for(["video instances"], ClassSetting(len(source.classes)))

        def count(number: int, name: str) -> None:
            with fabric.autocast():
                result: InstanceResult = model.track(
                    self._frames_ahead(source, name), source.size(name), keep=encoded, window=self.window
                )
            truth = self._truth(source, number)
            metrics.add(number, result, truth)
            metrics.facts.add_objects(sum(not track.crowd for track in truth.tracks or ()), self.queries)

        count_items(
            self,
            model,
            fabric,
            title=title,
            numbers=numbers,
            items=lambda mine: (source.names[number] for number in mine),
            count=count,
            metrics=metrics,
            decisive={"numbers": list(numbers), "names": source.names},
        )
        return metrics

    def _frames_ahead(self, source: VideoSource, name: str) -> Iterator[Tensor]:
        """The frames of a video as the model sees them, in order, a few of them read ahead."""
        frames, workers = _Frames(source, name, self.preparation()), self.settings.eval.workers
        if not workers or len(frames) <= 8:
            return _checked(frames[index] for index in range(len(frames)))
        return _checked(DataLoader(frames, batch_size=None, num_workers=workers, prefetch_factor=4))

    def _truth(self, source: VideoSource, number: int) -> VideoTruth:
        name = source.names[number]
        height, width = source.size(name)
        # Where the data set has no numbers, results call a video by its place.
        identifier = source.video_id(name)
        tracks = source.tracks(name) if source.has_truth else None
        return VideoTruth(
            identifier if isinstance(identifier, int) else number, source.frames(name), height, width, tracks
        )

    # -- pictures and files -----------------------------------------------------------------------------------

    def write(
        self, evaluation: Evaluation, model: nn.Module, fabric: Fabric, folder: Path, before: nn.Module | None = None
    ) -> list[Path]:
        """Write the submission in the official format, and frames of the best, the worst and some other videos."""
        result, source = evaluation.result, self.source(evaluation=True)
        metric: Any = evaluation.metrics.metrics["video instances"]
        ids = [category.id for category in source.classes.categories]
        written = write_submission(folder / "submission.json", recorded_rows(metric, ids))
        count, numbers = self.settings.eval.pictures, sorted(number for number, _ in result.quality)
        if not count or not numbers:
            return written
        groups = {"grid.png": (numbers[:: max(1, len(numbers) // count)][:count], "test videos")}
        if source.has_truth:
            best, worst = best_and_worst(result.quality, count)
            groups |= {"best.png": (best, "best videos"), "worst.png": (worst, "worst videos")}
        heading = [f"{column + 1} of {COLUMNS}" for column in range(COLUMNS)]
        for name, (shown, title) in groups.items():
            if shown:
                rows = [row for number in shown for row in self._rows(metric, number, dict(result.quality)[number])]
                title = f"{result.model}: {title}, {result.setting()}"
                grid(rows, heading, title, side=TILE).save(folder / name)
                written.append(folder / name)
        return written

    def _rows(self, metric: Any, number: int, quality: float) -> list[list[Tile]]:
        """Truth and prediction of a video, at frames evenly spread over it."""
        source, record = self.source(evaluation=True), metric.records[number]
        name = source.names[number]
        frames = np.linspace(0, source.frames(name) - 1, COLUMNS).round().astype(int).tolist()
        images = {frame: np.asarray(source.frame(name, frame)) for frame in frames}
        detections = [(label, masks) for label, _, masks in record["detections"]]
        scores = [score for _, score, _ in record["detections"]]
        rows: list[Any] = [(detections, scores, f"overlap {100 * quality:.0f} %")]
        if source.has_truth:
            rows.insert(0, (record["truth"], None, "truth"))
        tiles: list[list[Tile]] = []
        for objects, of_objects, caption in rows:
            labels, tracks = [entry[0] for entry in objects], [entry[1] for entry in objects]
            tiles.append([])
            for frame, image in images.items():
                # A model that has just begun to learn is sure of nothing: its best guess is drawn in any case.
                regions = frame_regions(frame, tracks, labels, source.classes.names, of_objects, at_least=1)
                tiles[-1].append(Tile(enlarged_overlay(image, regions, TILE), f"{name} frame {frame}: {caption}"))
        return tiles

    # -- prediction -------------------------------------------------------------------------------------------

    def python_predictor(self, model: nn.Module, label: str, size: int | None = None) -> Any:
        """Return a :class:`fssops.VideoPredictor`."""
        from fssops.fixed_class_predictors import VideoPredictor

        return VideoPredictor(self, model, label, size)

    def predictor(self, model: nn.Module, label: str, options: Any) -> Any:
        """Return what segments videos."""
        from fssops.tasks.video_files import animation_suffix
        from fssops.tasks.video_prediction import VideoPrediction

        if options.task and set(options.task) != {"instance"}:
            name = self.settings.model.name
            raise SettingsError(f"--task: {name} finds instances alone, got {', '.join(options.task)}")
        return VideoPrediction(
            self.python_predictor(model, label, options.size),
            options.out,
            suffix=animation_suffix(options.video),
            least_score=options.score,
            rate=options.rate,
            zipped=options.zip,
        )


class _Frames(Dataset["Tensor | str"]):
    """Frames of one video for loader processes; a failure travels as its message, so that it arrives unwrapped."""

    def __init__(self, source: VideoSource, name: str, preparation: UniversalPreparation) -> None:
        self.source, self.name, self.preparation = source, name, preparation

    def __len__(self) -> int:
        return self.source.frames(self.name)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            image = np.asarray(self.source.frame(self.name, index))
        except (OSError, ValueError) as error:
            return str(error)
        return self.preparation(image, self.name).image


def _checked(frames: Iterable[Tensor | str]) -> Iterator[Tensor]:
    for frame in frames:
        if isinstance(frame, str):
            raise ImageFileError(frame)
        yield frame
