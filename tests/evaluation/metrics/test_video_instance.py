"""Video AP and AR: equal to the official code's on the same files, and right where one can count."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from video_samples import CASES, predictions_for, sample

from fssops.data.layouts import open_data
from fssops.data.source import VideoSource
from fssops.evaluation.metrics.metric import Coverage
from fssops.evaluation.metrics.video_instance import VideoPrecision, video_iou
from fssops.run_lengths import decode, encode
from fssops.structures import InstanceResult
from fssops.truth import TrackTruth, VideoTruth

OFFICIAL = json.loads((Path(__file__).parent / "official_video_scores.json").read_text())
NAMES = {"AR100": "ar100", "AR10": "ar10", "AR1": "ar1"}


def records_of(source: VideoSource, rows: list[dict[str, Any]]) -> VideoPrecision:
    """The records of a results file against a data set."""
    index_of = source.classes.index_of
    records = VideoPrecision(len(source.classes))
    for name in source.names:
        identifier, size = source.video_id(name), source.size(name)
        assert isinstance(identifier, int)
        detections = [
            (index_of[row["category_id"]], row["score"], row["segmentations"])
            for row in rows
            if row["video_id"] == identifier
        ]
        truth = []
        for track in source.tracks(name):
            masks = [track.mask(frame, *size) for frame in range(source.frames(name))]
            encoded = [None if mask is None else encode(mask) for mask in masks]
            truth.append((track.label, encoded, track.crowd, track.areas))
        records.record(identifier, source.frames(name), detections, truth)
    return records


def check(records: VideoPrecision, case: str) -> None:
    scores, official = records.scores(), OFFICIAL[case]
    for name, wanted in official["stats"].items():
        got = getattr(scores, NAMES.get(name, name.lower().replace(" ", "_")))
        assert got == pytest.approx(float("nan") if wanted is None else wanted, abs=1e-12, nan_ok=True), name
    wanted_classes = [float("nan") if value is None else value for value in official["class AP"]]
    np.testing.assert_allclose(scores.class_ap, wanted_classes, atol=1e-12)


@pytest.mark.parametrize("case", [name for name in OFFICIAL if not name.startswith("davis")])
def test_drawn_cases_score_as_the_official_code_scores_them(case: str, tmp_path: Path) -> None:
    """Crowds, equal scores, all sizes, frames without masks, videos and classes without objects."""
    kind, seed = case.split("-")
    truth, rows = sample(kind, int(seed))
    (tmp_path / "val.json").write_text(json.dumps(truth))
    (tmp_path / "val").mkdir()
    records = records_of(open_data("ytvis", tmp_path, split="val", truth="video"), rows)
    assert sum(len(v["detections"]) for v in records.records.values()) == OFFICIAL[case]["detections"] > 10
    check(records, case)


@pytest.mark.parametrize("seed", [0, 1])
def test_predictions_on_real_videos_score_as_the_official_code_scores_them(data_root: Path, seed: int) -> None:
    truth = json.loads((data_root / "davis_mini" / "val" / "instances.json").read_text())
    rows = predictions_for(truth, "davis", np.random.default_rng([CASES.index("davis"), seed]))
    records = records_of(open_data("ytvis", data_root / "davis_mini", split="val", truth="video"), rows)
    check(records, f"davis-{seed}")


def test_the_official_samples_are_worth_comparing() -> None:
    """Neither perfect nor hopeless, and every size range and limit occurs."""
    values = [entry["stats"] for entry in OFFICIAL.values()]
    assert len(values) >= 17
    assert sum(0.1 < stats["AP"] < 0.9 for stats in values) > 10
    for name in ("AP small", "AP medium", "AP large"):
        assert any(stats[name] is not None and 0 < stats[name] < 1 for stats in values)
    assert any(stats["AR1"] < stats["AR10"] for stats in values)


def strip(*columns: int | None) -> list[dict[str, Any] | None]:
    """One mask a frame: as many of 10 columns of a 4 x 10 picture; None where nothing is said."""
    masks = []
    for count in columns:
        mask = np.zeros((4, 10), dtype=bool)
        mask[:, : count or 0] = True
        masks.append(None if count is None else encode(mask))
    return masks


def test_overlap_is_summed_over_frames_before_it_is_divided() -> None:
    assert video_iou(strip(5, 5), strip(5, 10)) == pytest.approx((20 + 20) / (20 + 40))
    assert video_iou(strip(5, None), strip(5, 5)) == pytest.approx(20 / 40)
    assert video_iou(strip(5, None), strip(5, None)) == 1.0
    assert video_iou(strip(None, 0), strip(None, None)) == 0.0


def test_a_perfect_result_scores_one_and_a_swapped_identity_does_not() -> None:
    perfect, swapped = VideoPrecision(1), VideoPrecision(1)
    mask = np.zeros((4, 10), dtype=bool)
    mask[:, 6:] = True
    left, right = strip(4, 4), [encode(mask), encode(mask)]
    truth = [(0, left, False, []), (0, right, False, [])]
    perfect.record(1, 2, [(0, 0.9, left), (0, 0.8, right)], truth)
    swapped.record(1, 2, [(0, 0.9, [left[0], right[1]]), (0, 0.8, [right[0], left[1]])], truth)
    assert perfect.scores().ap == pytest.approx(1.0)
    assert swapped.scores().ap == 0.0


def test_records_of_processes_join_to_the_same_scores() -> None:
    whole, parts = VideoPrecision(5), [VideoPrecision(5), VideoPrecision(5), VideoPrecision(5)]
    for number in range(1, 8):
        entry = (number, 2, [(number % 5, 0.1 * number, strip(number, 4))], [(number % 5, strip(4, 4), False, [])])
        whole.record(*entry)
        parts[0 if number < 6 else 1].record(*entry)  # uneven, and one process has nothing
    joined = VideoPrecision(5)
    joined.merge([copy.deepcopy(part.state()) for part in reversed(parts)])
    assert joined.scores() == whole.scores() or str(joined.scores()) == str(whole.scores())


def test_no_detections_and_no_objects() -> None:
    records = VideoPrecision(2)
    records.record(1, 1, [], [(0, strip(3), False, [])])
    assert records.scores().ap == 0.0
    empty = VideoPrecision(2)
    empty.record(1, 1, [(0, 0.5, strip(3))], [])
    assert np.isnan(empty.scores().ap)


def test_wrong_records_are_told() -> None:
    records = VideoPrecision(1)
    records.record(1, 2, [], [])
    with pytest.raises(ValueError, match="video must be new, got 1 again"):
        records.record(1, 2, [], [])
    with pytest.raises(ValueError, match=r"masks must be one a frame \(2\), got 1"):
        records.record(2, 2, [(0, 0.5, strip(3))], [])
    halved = [encode(np.ones((2, 5), dtype=bool))]
    with pytest.raises(ValueError, match=r"masks must be of one size, got \[\(2, 5\), \(4, 10\)\] in video 3"):
        records.record(3, 1, [(0, 0.5, halved)], [(0, strip(3), False, [])])


def test_a_video_goes_as_well_as_the_best_scored_overlap_with_each_object() -> None:
    def track(label: int, *columns: int | None, crowd: bool = False) -> TrackTruth:
        return TrackTruth(label, label, [None if mask is None else decode(mask) for mask in strip(*columns)], crowd)

    truth = VideoTruth(7, 2, 4, 10, [track(0, 4, 4), track(1, 6, None), track(1, 2, 2, crowd=True)])
    found = InstanceResult(
        torch.tensor([0.5, 0.9, 0.8]), torch.tensor([0, 0, 0]), [strip(4, 4), strip(2, None), strip(6, None)]
    )
    metric = VideoPrecision(2)
    # Object 1: 0.5 x 1 against 0.9 x 8 / 32; object 2 is found under another class.
    assert metric.add(3, found, truth) == pytest.approx((0.5 + 0) / 2)
    assert metric.records[3]["id"] == 7
    assert [entry[2] for entry in metric.records[3]["truth"]] == [False, False, True]
    assert metric.records[3]["truth"][1][1] == strip(6, None)
    unknown = VideoTruth("clip", 2, 4, 10, None)
    assert metric.add(5, found, unknown) == 0.0
    assert metric.records[5]["truth"] == []
    assert [record["id"] for record in metric.by_id()] == [5, 7]


def test_every_score_is_a_mean_over_the_classes_that_the_truth_shows() -> None:
    metric = VideoPrecision(3)
    metric.record(1, 1, [(0, 0.5, strip(3))], [(0, strip(3), False, [])])
    found = metric.scores()
    assert list(found.summary()) == ["AP", "AP50", "AP75", "AR1", "AR10"]
    assert found.coverage() == dict.fromkeys(found.summary(), Coverage(1, 3))
    assert list(found.columns()) == ["AP"]
