"""Video instance segmentation as the verbs run it: data from settings, validation, scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fssops.data import universal, video
from fssops.data.errors import ImageFileError
from fssops.engine.checkpoints import read_checkpoint
from fssops.engine.progress import ProgressBar
from fssops.engine.random_state import preserved_random_state
from fssops.engine.settings import SettingsError
from fssops.engine.trainer import Validate
from fssops.evaluation.instance import encode
from fssops.evaluation.universal import percent
from fssops.evaluation.video import Masks, VideoRecords, video_iou
from fssops.evaluation.video_results import VideoEvaluation
from fssops.models import create_config
from fssops.structures import ClipBatch, MaskTargets, VideoResult
from fssops.tasks.keeping import Keeping, all_states, to_plain
from fssops.tasks.video_settings import VideoSettings

Say = Callable[[str], None]


def unpacked_batch(
    clips: Any, targets: Any, output_sizes: Any, names: Any, seeds: Any = (), share: Any = None
) -> ClipBatch:
    """Rebuild a batch from the plain values of a replay file."""
    rebuilt = None if targets is None else [MaskTargets(**target) for target in targets]
    sizes = None if output_sizes is None else [(int(size[0]), int(size[1])) for size in output_sizes]
    return ClipBatch(clips, rebuilt, sizes, names, list(seeds), share)


def encoded(masks: Tensor) -> list[dict[str, Any]]:
    """Run lengths of bool masks [n, H, W]: what is kept of a video's masks while it is segmented."""
    return [encode(mask) for mask in masks.cpu().numpy()]


class VideoTask(Keeping):
    """Builds what settings describe.

    Args:
        settings: the resolved recipe.
    """

    settings_class = VideoSettings
    collate = staticmethod(video.ClipItem.stack)
    batch_class = staticmethod(unpacked_batch)

    def __init__(self, settings: VideoSettings) -> None:
        self.settings = settings
        self.config = create_config(settings.model.name, settings.model.options)
        self._sources: dict[str, video.VideoSource] = {}
        if 0 < self.window <= self.config.overlap:
            raise SettingsError(
                f"eval.window must be 0 or more than model.overlap ({self.config.overlap}), got {self.window}"
            )

    # -- data -------------------------------------------------------------------------------------------------

    def source(self, *, evaluation: bool = False) -> video.VideoSource:
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
            source = video.open_source(data.source, root or None, split=split, **options)
            if self.config.num_classes != len(source.metadata):
                raise SettingsError(
                    f"model.num_classes must be the number of classes of {source.label}, {len(source.metadata)}, "
                    f"got {self.config.num_classes}"
                )
            self._sources[key] = source
        return self._sources[key]

    def classes(self) -> universal.Metadata:
        """The classes: of the data set where its files are at hand, else as published.

        Raises:
            SettingsError: neither is to be had.
        """
        known = video.known_classes(self.settings.data.source)
        if known is not None:
            return known
        try:
            return self.source().metadata
        except (OSError, ValueError) as error:
            raise SettingsError(f"data: class names must be readable, got {error}") from None

    def training_data(self) -> tuple[video.TrainingClips, list[str]]:
        """Return the training clips and lines that describe them."""
        data = self.settings.data
        source = self.source()
        chain = universal.pipeline(data.augment, short_sides=data.short_sides, longest=data.longest)
        dataset = video.TrainingClips(source, chain, frames=data.frames, reach=data.reach)
        lines = [
            f"training data  {source.label}, {len(dataset)} videos, {len(source.metadata)} classes, clips of "
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

    def chosen(self, limit: int) -> list[int]:
        """Numbers of the evaluated videos: all, or ``limit`` of them evenly spread."""
        total = len(self.source(evaluation=True).names)
        count = total if not limit else min(limit, total)
        return [index * total // count for index in range(count)]

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
        records = VideoRecords(len(source.metadata))
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
            own = {"videos": records.videos, "quality": dict(quality)}
            gathered = _gathered(own, fabric.world_size) if fabric.world_size > 1 else None
            for state in all_states(own, gathered, progress, fabric):
                records.merge([state["videos"]])
                quality.update(state["quality"])
        evaluated = VideoEvaluation(
            model=label,
            dataset=source.label,
            videos=len(numbers),
            of=len(source.names),
            frames=sum(source.frames(source.names[number]) for number in numbers),
            test_size=self.test_size(),
            classes=source.metadata.names,
            instances=records.scores() if source.has_truth else None,
            quality=sorted(quality.items(), key=lambda entry: (-entry[1], entry[0])),
            seconds=round(time.perf_counter() - started, 2),
        )
        return evaluated, records

    def segment(self, model: Any, fabric: Fabric, name: str) -> VideoResult:
        """Segment one video; masks are run lengths."""
        source = self.source(evaluation=True)
        with fabric.autocast():
            result: VideoResult = model.track(
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
        from fssops.tasks.video_reports import gallery, write_results

        if self.settings.eval.checkpoint == "best":
            model.load_state_dict(read_checkpoint(folder / "checkpoints" / "best.pt")["model"])
        label, before = self.settings.name, None
        with preserved_random_state():
            trained, records = self.evaluate(model, fabric, label, "evaluate")
            if untrained is not None:
                untrained = untrained.to(fabric.device)
                before, _ = self.evaluate(untrained, fabric, f"{label}, untrained", "untrained model")
        if fabric.is_global_zero:
            write_results(self, records, folder)
            gallery(self, trained, records, folder)
        found: dict[str, Any] = {"scores": trained.scores(), "trained": trained.as_json()}
        say(f"trained        {trained.line()}")
        if trained.instances is None:
            return found
        name, value = trained.main
        found["finals"] = {name: value}
        if before is not None:
            earlier = before.main[1]
            found |= {"untrained": before.as_json(), "gain": value - earlier}
            found["finals"][f"{name}, untrained"] = earlier
            say(f"untrained      {before.line()}")
            say(f"gain           {percent(value - earlier)} points of {name}")
        return found

    def run_files(self) -> dict[str, Any]:
        """What a run folder keeps of the data, by file name: the classes, for prediction elsewhere."""
        return {"classes.json": self.source().metadata.as_json()}


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


def count_video(records: VideoRecords, source: video.VideoSource, name: str, number: int, result: VideoResult) -> float:
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


def _gathered(state: dict[str, Any], world_size: int) -> Sequence[dict[str, Any]]:
    found: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(found, state)
    return found
