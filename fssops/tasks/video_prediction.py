"""What ``predict`` leaves of a video system: objects through whole videos, drawn and as JSON.

OUT/results.json            submission format of YouTube-VIS: video_id, category_id, score, run lengths a frame
OUT/frames/VIDEO/000000.jpg frames with the objects on them, each in a colour of its own that stays
OUT/VIDEO.webp              the same as a video (mp4 with the extra fssops[video])
OUT/classes.json            classes with their ids, names and colours
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fssops.evaluation.regions import SHOWN_SCORE
from fssops.evaluation.submissions import Row, write_submission
from fssops.fixed_class_predictors import VideoPredictor
from fssops.segmentations import VideoSegmentation
from fssops.tasks.prediction import Predictor
from fssops.tasks.video_files import DEFAULT_RATE, VideoInput, find_videos, write_video


class VideoPrediction(Predictor):
    """Segments videos one by one.

    Args:
        predictor: of the model.
        out: folder.
        suffix: of the videos that are made, without the dot; "none" makes none.
        least_score: objects below it are left out of pictures and of ``summary.csv`` (not of the JSON).
        rate: frames a second of what is made.
        zipped: write results.zip too.

    Raises:
        SettingsError: a rate that is no number above 0.
    """

    noun = "video"
    unusable = "videos or frames could not be used"

    def __init__(
        self,
        predictor: VideoPredictor,
        out: Path,
        *,
        suffix: str = "webp",
        least_score: float = SHOWN_SCORE,
        rate: float = DEFAULT_RATE,
        zipped: bool = False,
    ) -> None:
        super().__init__(out, predictor.label, suffix=suffix, rate=rate)
        self.predictor, self.least_score, self.zipped = predictor, least_score, zipped
        self.submission: list[Row] = []

    def find(self, queries: Sequence[str]) -> tuple[list[Path], int, list[VideoInput]]:
        """Video files, folders of frames, and folders of either."""
        videos = find_videos(queries)
        return [path for video in videos for path in video.paths], len(videos), videos

    def segment(self, one: VideoInput) -> None:
        """Segment one video and write its files.

        Raises:
            ValueError: no frame can be read, or frames differ in size.
        """
        number = len(self.rows) + 1
        found = self.predictor.track(one)
        self.submission += found.to_coco(number)
        row: dict[str, Any] = {"id": number, "name": one.name, "file": one.origin, "length": found.length}
        if not one.is_file:
            row["frames"] = [path.name for path in one.paths]
        self.rows.append({**row, "height": found.size[0], "width": found.size[1]})
        self.count(one.origin, found.counts(self.least_score))
        drawn = self._drawn(one.name, found)
        if self.suffix == "none":
            for _ in drawn:
                pass
        else:
            write_video(self.out / f"{one.name}.{self.suffix}", drawn, self.rate)

    def problems(self, one: VideoInput) -> Iterator[tuple[Mapping[str, Any], str]]:
        """Frames that could not be read."""
        for frame, reason in sorted(one.unreadable.items()):
            row = {"video": one.origin, "frame": str(frame), "error": reason}
            yield row, f"{one.origin}: frame {frame} left out: {reason}"

    def _drawn(self, name: str, found: VideoSegmentation) -> Iterator[np.ndarray]:
        for frame in found:
            picture = frame.overlay(self.least_score)
            self.save(picture, "frames", name, f"{frame.frame:06d}.jpg")
            yield np.asarray(picture)

    def finish(self) -> None:
        """Write the submission and the classes."""
        write_submission(self.out / "results.json", self.submission, zipped=self.zipped)
        self.write_json("classes.json", self.predictor.categories.as_json())

    def summary(self) -> dict[str, Any]:
        """Size and classes."""
        return {"test_size": self.predictor.task.test_size(), "classes": list(self.predictor.classes)}

    def files(self) -> str:
        """Which files are left, in words."""
        videos = "" if self.suffix == "none" else f", a .{self.suffix} each"
        return f"results.json, frames/, classes.json, summary.json, summary.csv{videos}"
