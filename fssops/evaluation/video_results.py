"""Results of video evaluation: scores with what they were measured on, and files in the official submission format."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fssops.evaluation.scores import percent, without_nan
from fssops.evaluation.video import VideoRecords, VideoScores

PROTOCOL = "video mask AP of YouTube-VIS (IoU over all frames of a video)"


@dataclass(frozen=True)
class VideoEvaluation:
    """Scores of one model on one split.

    Attributes:
        model: what was evaluated, for the reader.
        dataset: name and split of the data.
        videos: number of videos looked at.
        of: number of videos in the split.
        frames: in them.
        test_size: at which size, and in clips of how many frames, in words.
        classes: class names by index.
        instances: scores; None where the split has no truth.
        quality: (position of the video, how well it went in [0, 1]), best first.
        seconds: wall time.
    """

    model: str
    dataset: str
    videos: int
    of: int
    frames: int
    test_size: str
    classes: list[str]
    instances: VideoScores | None = None
    quality: list[tuple[int, float]] = field(default_factory=list, repr=False)
    seconds: float = 0.0

    def scores(self) -> dict[str, float]:
        """All summary scores in [0, 1] by name."""
        return {} if self.instances is None else self.instances.summary()

    @property
    def main(self) -> tuple[str, float]:
        """Name and value of the score that a run is judged by.

        Raises:
            ValueError: the split has no truth.
        """
        if self.instances is None:
            raise ValueError(f"VideoEvaluation: {self.dataset} must have truth to score against, got none")
        return "AP", self.instances.ap

    def setting(self) -> str:
        """Say what was measured, without the scores."""
        videos = f"{self.videos} videos" if self.videos == self.of else f"{self.videos} of {self.of} videos"
        return f"{self.dataset}, {videos} ({self.frames} frames), {self.test_size}; {PROTOCOL}"

    def line(self) -> str:
        """One line that can be quoted: the scores in percent and the whole setting."""
        scores = "  ".join(f"{name} {percent(value)}" for name, value in self.scores().items())
        return f"{scores or 'no truth, no scores'}  [{self.model}; {self.setting()}]"

    def class_table(self) -> list[list[str]]:
        """Rows of a table, one a class, in percent; the first row names the columns."""
        rows = [["class", "name", "AP"]]
        for index, name in enumerate(self.classes):
            rows.append([str(index), name, "-" if self.instances is None else percent(self.instances.class_ap[index])])
        return rows

    def as_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes null."""
        plain = {**asdict(self), "protocol": PROTOCOL, "scores": self.scores(), "line": self.line()}
        return without_nan(plain)  # type: ignore[no-any-return]


Row = dict[str, Any]
"""One object of a submission: video_id, category_id, score, and segmentations: run lengths or null, one a frame."""


def submission_rows(
    video_id: int | str,
    labels: Sequence[int],
    scores: Sequence[float],
    masks: Sequence[Sequence[Mapping[str, Any] | None]],
    category_ids: Sequence[int],
) -> list[Row]:
    """Rows of a submission for one video.

    Args:
        video_id: as the annotation file calls the video.
        labels: class indices [K].
        scores: [K].
        masks: K lists of run lengths, one a frame, None where the object is not in sight.
        category_ids: id of each class in the annotation file.
    """
    return [
        {
            "video_id": video_id,
            "category_id": category_ids[label],
            "score": float(score),
            "segmentations": [None if mask is None else dict(mask) for mask in own],
        }
        for label, score, own in zip(labels, scores, masks, strict=True)
    ]


def rows_of_records(records: VideoRecords, category_ids: Sequence[int]) -> list[Row]:
    """The rows of all videos that were recorded, by ascending id."""
    rows: list[Row] = []
    for video in sorted(records.videos):
        for label, score, masks in records.videos[video]["detections"]:
            rows += submission_rows(video, [label], [score], [masks], category_ids)
    return rows


def write_submission(path: Path, rows: Sequence[Row], *, zipped: bool = True) -> list[Path]:
    """Write rows as JSON, and beside it the zip file that the evaluation servers take, which holds ``results.json``.

    Args:
        path: ends in ``.json``.
        rows: of :func:`submission_rows`.
        zipped: write the zip file too.

    Returns:
        the files written.

    Raises:
        ValueError: another ending.
    """
    if path.suffix != ".json":
        raise ValueError(f"write_submission: path must end in .json, got {path}")
    text = json.dumps(list(rows))
    path.write_text(text, encoding="utf-8")
    if not zipped:
        return [path]
    archive = path.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("results.json", text)
    return [path, archive]
