"""What ``python -m fssops.predict`` does with video systems: objects through whole videos, drawn and as JSON.

OUT/results.json            submission format of YouTube-VIS: video_id, category_id, score, run lengths a frame
OUT/frames/VIDEO/000000.jpg frames with the objects on them, each in a colour of its own that stays
OUT/VIDEO.webp              the same as a video (mp4 with the extra fssops[video])
OUT/classes.json            classes with their ids, names and colours
OUT/summary.json            which video has which id, and what could not be read
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fssops.data import universal
from fssops.engine.checkpoints import write_text_atomically
from fssops.evaluation.video_pictures import SHOWN_SCORE, draw_frame, drawn_objects
from fssops.evaluation.video_results import Row, submission_rows, write_submission
from fssops.run_lengths import decode
from fssops.structures import InstanceResult
from fssops.tasks.video import VideoTask, encoded
from fssops.tasks.video_files import DEFAULT_RATE, VideoInput, write_video


@dataclass
class VideoPredictor:
    """Segments videos one by one and writes what it finds.

    Args:
        task: test size and window.
        model: on its device, in evaluation mode.
        classes: of the model.
        out: folder.
        suffix: of the videos that are made, without the dot; "none" makes none.
        least_score: objects below it are left out of pictures (not of the JSON).
        short_side: instead of the settings'.
        rate: frames a second of what is made.
        zipped: write results.zip too.
    """

    task: VideoTask
    model: nn.Module
    classes: universal.Classes
    out: Path
    suffix: str = "webp"
    least_score: float = SHOWN_SCORE
    short_side: int | None = None
    rate: float = DEFAULT_RATE
    zipped: bool = False
    rows: list[Row] = field(default_factory=list, init=False)
    videos: list[dict[str, Any]] = field(default_factory=list, init=False)

    def run(self, given: Sequence[VideoInput], progress: Any, label: str) -> int:
        """Segment videos, write everything, say what was done; returns the verb's exit code."""
        self.out.mkdir(parents=True, exist_ok=True)
        failures: list[dict[str, str]] = []
        for number, video in enumerate(given, start=1):
            try:
                self.segment(video, number)
            except (ValueError, OSError) as error:
                # One broken video must not cost the others.
                failures.append({"video": video.origin, "error": str(error)})
                progress.say(f"left out {video.origin}: {error}")
            for frame, reason in sorted(video.unreadable.items()):
                failures.append({"video": video.origin, "frame": str(frame), "error": reason})
                progress.say(f"{video.origin}: frame {frame} left out: {reason}")
            progress.advance()
        write_submission(self.out / "results.json", self.rows, zipped=self.zipped)
        self._write("classes.json", self.classes.as_json())
        summary = {
            "model": label,
            "test_size": self.task.test_size(),
            "classes": self.classes.names,
            "videos": self.videos,
            "failed": failures,
        }
        self._write("summary.json", summary)
        files = "results.json, frames/, classes.json, summary.json"
        files += "" if self.suffix == "none" else f", a .{self.suffix} each"
        print(f"{len(self.videos)} videos segmented into {self.out}/ ({files})")
        if failures:
            print(f"{len(failures)} videos or frames could not be used, see summary.json")
        return 1 if failures else 0

    @torch.inference_mode()
    def segment(self, video: VideoInput, number: int) -> InstanceResult:
        """Segment one video and write its files.

        Raises:
            ValueError: no frame can be read, or frames differ in size.
        """
        read: list[int] = []
        size: list[tuple[int, int]] = []
        result: InstanceResult = self.model.track(  # type: ignore[operator]
            self._seen(video, read, size), self._size_of(video), keep=encoded, window=self.task.window
        )
        total = max([*read, *video.unreadable]) + 1
        place = {frame: index for index, frame in enumerate(read)}
        masks = [[own[place[f]] if f in place else None for f in range(total)] for own in result.masks]
        ids = [category.id for category in self.classes.categories]
        labels, scores = result.labels.tolist(), result.scores.tolist()
        self.rows += submission_rows(number, labels, scores, masks, ids)
        height, width = size[0]
        row = {"id": number, "name": video.name, "file": video.origin, "length": total}
        self.videos.append({**row, "height": height, "width": width})
        self._draw(video, masks, labels, scores)
        return result

    def _size_of(self, video: VideoInput) -> tuple[int, int] | None:
        first = next(video.frames(), None)
        if first is None:
            reason = next(iter(video.unreadable.values()), "no frame")
            raise ValueError(
                f"{video.origin}: video must have at least one frame that can be read, got none ({reason})"
            )
        return first[1].shape[0], first[1].shape[1]

    def _seen(self, video: VideoInput, read: list[int], size: list[tuple[int, int]]) -> Iterator[Tensor]:
        """The frames as the model sees them; notes which they are."""
        rules = self.task.settings.eval
        side = rules.short_side if self.short_side is None else self.short_side
        for frame, image in video.frames():
            shape = (image.shape[0], image.shape[1])
            if size and shape != size[0]:
                raise ValueError(
                    f"{video.origin}: frame {frame} must have the size of the first, {size[0][1]} x {size[0][0]}, got "
                    f"{shape[1]} x {shape[0]}"
                )
            size.append(shape)
            del size[1:]
            read.append(frame)
            yield universal.evaluation_item(image, video.name, side, rules.longest).image

    def _draw(
        self, video: VideoInput, masks: Sequence[Sequence[Any]], labels: Sequence[int], scores: Sequence[float]
    ) -> None:
        objects = drawn_objects(labels, scores, self.classes.names, self.least_score)
        folder = self.out / "frames" / video.name
        folder.mkdir(parents=True, exist_ok=True)

        def drawn() -> Iterator[np.ndarray]:
            for frame, image in video.frames():
                seen = {k: decode(masks[k][frame]) for k in objects if masks[k][frame] is not None}
                picture = draw_frame(image, objects, seen)
                Image.fromarray(picture).save(folder / f"{frame:06d}.jpg", quality=92)
                yield picture

        if self.suffix == "none":
            for _ in drawn():
                pass
        else:
            write_video(self.out / f"{video.name}.{self.suffix}", drawn(), self.rate)

    def _write(self, name: str, content: Any) -> None:
        write_text_atomically(self.out / name, json.dumps(content) + "\n")
