"""Results in COCO's form and submissions of YouTube-VIS: every field where the official tools look for it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fssops.evaluation.metrics.video_instance import VideoPrecision
from fssops.evaluation.submissions import coco_results, recorded_rows, submission_rows, write_submission
from fssops.run_lengths import decode, encode

MASK = np.eye(4, dtype=bool)


def test_instances_of_an_image_are_rows_with_the_ids_of_the_data_set() -> None:
    rows = coco_results(17, [1, 0], [0.5, np.float32(0.25)], np.stack([MASK, ~MASK]), [10, 20])  # type: ignore[list-item]
    assert [(row["image_id"], row["category_id"], row["score"]) for row in rows] == [(17, 20, 0.5), (17, 10, 0.25)]
    assert np.array_equal(decode(json.loads(json.dumps(rows))[1]["segmentation"]), ~MASK)


def test_objects_of_a_video_are_rows_with_one_mask_a_frame() -> None:
    [row] = submission_rows("clip", [1], [0.5], [[encode(MASK), None]], [10, 20])
    assert (row["video_id"], row["category_id"], row["score"]) == ("clip", 20, 0.5)
    assert row["segmentations"] == [encode(MASK), None]


def test_counted_videos_come_by_their_ids() -> None:
    metric = VideoPrecision(2)
    metric.record(0, 1, [(0, 0.5, [encode(MASK)]), (1, 0.25, [None])], [], identifier=30)
    metric.record(1, 1, [(1, 0.75, [encode(MASK)])], [], identifier=4)
    metric.record(2, 1, [(0, 0.1, [None])], [], identifier="no number")
    rows = recorded_rows(metric, [10, 20])
    assert [(row["video_id"], row["category_id"], row["score"]) for row in rows] == [
        (2, 10, 0.1),
        (4, 20, 0.75),
        (30, 10, 0.5),
        (30, 20, 0.25),
    ]


def test_a_submission_is_a_json_file_and_the_zip_that_servers_take(tmp_path: Path) -> None:
    rows = submission_rows(1, [0], [0.5], [[None]], [10])
    files = write_submission(tmp_path / "submission.json", rows)
    assert files == [tmp_path / "submission.json", tmp_path / "submission.zip"]
    assert json.loads(files[0].read_text()) == rows
    with zipfile.ZipFile(files[1]) as archive:
        assert archive.namelist() == ["results.json"]
        assert json.loads(archive.read("results.json")) == rows
    assert write_submission(tmp_path / "alone.json", rows, zipped=False) == [tmp_path / "alone.json"]
    assert not (tmp_path / "alone.zip").exists()


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must end in \.json, got .*results\.zip"):
        write_submission(tmp_path / "results.zip", [])
