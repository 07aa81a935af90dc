"""What ``predict`` leaves of a video system: objects through whole videos, drawn and as JSON.

OUT/results.json            submission format of YouTube-VIS: video_id, category_id, score, run lengths a frame
OUT/frames/VIDEO/000000.jpg frames with the objects on them, each in a colour of its own that stays
OUT/VIDEO.webp              the same as a video (mp4 with the extra fssops[video])
OUT/classes.json            classes with their ids, names and colours
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fssops.engine.settings import SettingsError
from fssops.evaluation.regions import SHOWN_SCORE, frame_regions
from fssops.evaluation.submissions import Row, submission_rows, write_submission
from fssops.pictures import overlay
from fssops.structures import InstanceResult
from fssops.tasks.prediction import Predictor
from fssops.tasks.video import encoded
from fssops.tasks.video_files import DEFAULT_RATE, VideoInput, find_videos, write_video
from fssops.truth import Classes

if TYPE_CHECKING:
    from fssops.tasks.video import VideoTask


class VideoPrediction(Predictor):
    """Segments videos one by one.

    Args:
        task: test size and window.
        model: on its device, in evaluation mode.
        classes: of the model.
        out: folder.
        label: what to call the model.
        suffix: of the videos that are made, without the dot; "none" makes none.
        least_score: objects below it are left out of pictures (not of the JSON).
        short_side: at which frames enter, instead of the settings'.
        rate: frames a second of what is made.
        zipped: write results.zip too.

    Raises:
        SettingsError: a rate that is no number above 0.
    """

    noun = "video"
    unusable = "videos or frames could not be used"

    def __init__(
        self,
        task: VideoTask,
        model: nn.Module,
        classes: Classes,
        out: Path,
        label: str,
        *,
        suffix: str = "webp",
        least_score: float = SHOWN_SCORE,
        short_side: int | None = None,
        rate: float = DEFAULT_RATE,
        zipped: bool = False,
    ) -> None:
        super().__init__(out, label)
        if not 0 < rate < float("inf"):
            raise SettingsError(f"--rate: frames a second must be a number above 0, got {rate}")
        self.task, self.model, self.classes = task, model, classes
        self.suffix, self.least_score, self.rate, self.zipped = suffix, least_score, rate, zipped
        self.prepare = task.preparation(short_side)
        self.submission: list[Row] = []

    def find(self, queries: Sequence[str]) -> tuple[list[Path], int, list[VideoInput]]:
        """Video files, folders of frames, and folders of either."""
        videos = find_videos(queries)
        return [path for video in videos for path in video.paths], len(videos), videos

    @torch.inference_mode()
    def segment(self, one: VideoInput) -> InstanceResult:
        """Segment one video and write its files.

        Raises:
            ValueError: no frame can be read, or frames differ in size.
        """
        number = len(self.rows) + 1
        size = self._size_of(one)
        read: list[int] = []
        result: InstanceResult = self.model.track(  # type: ignore[operator]
            self._prepared(one, read, size), size, keep=encoded, window=self.task.window
        )
        total = max([*read, *one.unreadable]) + 1
        place = {frame: index for index, frame in enumerate(read)}
        masks = [[mask[place[f]] if f in place else None for f in range(total)] for mask in result.masks]
        ids = [category.id for category in self.classes.categories]
        labels, scores = result.labels.tolist(), result.scores.tolist()
        self.submission += submission_rows(number, labels, scores, masks, ids)
        row: dict[str, Any] = {"id": number, "name": one.name, "file": one.origin, "length": total}
        if not one.is_file:
            row["frames"] = [path.name for path in one.paths]
        self.rows.append({**row, "height": size[0], "width": size[1]})
        self._draw(one, masks, labels, scores)
        return result

    def problems(self, one: VideoInput) -> Iterator[tuple[Mapping[str, Any], str]]:
        """Frames that could not be read."""
        for frame, reason in sorted(one.unreadable.items()):
            row = {"video": one.origin, "frame": str(frame), "error": reason}
            yield row, f"{one.origin}: frame {frame} left out: {reason}"

    def _size_of(self, video: VideoInput) -> tuple[int, int]:
        first = next(video.frames(), None)
        if first is None:
            reason = next(iter(video.unreadable.values()), "no frame")
            raise ValueError(
                f"{video.origin}: video must have at least one frame that can be read, got none ({reason})"
            )
        return first[1].shape[0], first[1].shape[1]

    def _prepared(self, video: VideoInput, read: list[int], size: tuple[int, int]) -> Iterator[Tensor]:
        """The frames as the model sees them; notes which they are."""
        for frame, image in video.frames():
            if image.shape[:2] != size:
                raise ValueError(
                    f"{video.origin}: frame {frame} must have the size of the first, {size[1]} x {size[0]}, got "
                    f"{image.shape[1]} x {image.shape[0]}"
                )
            read.append(frame)
            yield self.prepare(image, video.name).image

    def _draw(
        self, video: VideoInput, masks: Sequence[Sequence[Any]], labels: Sequence[int], scores: Sequence[float]
    ) -> None:
        names = self.classes.names

        def drawn() -> Iterator[np.ndarray]:
            for frame, image in video.frames():
                regions = frame_regions(frame, masks, labels, names, scores, least_score=self.least_score)
                picture = overlay(image, regions)
                self.save(picture, "frames", video.name, f"{frame:06d}.jpg")
                yield picture

        if self.suffix == "none":
            for _ in drawn():
                pass
        else:
            write_video(self.out / f"{video.name}.{self.suffix}", drawn(), self.rate)

    def finish(self) -> None:
        """Write the submission and the classes."""
        write_submission(self.out / "results.json", self.submission, zipped=self.zipped)
        self.write_json("classes.json", self.classes.as_json())

    def summary(self) -> dict[str, Any]:
        """Size and classes."""
        return {"test_size": self.task.test_size(), "classes": self.classes.names}

    def files(self) -> str:
        """Which files are left, in words."""
        videos = "" if self.suffix == "none" else f", a .{self.suffix} each"
        return f"results.json, frames/, classes.json, summary.json{videos}"
