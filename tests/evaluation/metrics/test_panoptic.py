"""Panoptic quality against its published definition, written down again without any sharing of code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fssops.data.layouts import open_data
from fssops.evaluation.metrics.panoptic import PanopticQuality
from fssops.structures import PanopticResult, PanopticSegment, SegmentationResult
from fssops.truth import Segment, Truth

CLASSES, THINGS = 4, (0, 1)


def by_definition(
    images: list[tuple[np.ndarray, dict[int, int], np.ndarray, list[Segment]]],
) -> dict[int, list[float]]:
    """IoU sum, true positives, false positives and false negatives of each class, pair by pair with masks."""
    found: dict[int, list[float]] = {}
    for ids, labels, true_ids, segments in images:
        void = true_ids == 0
        used: set[int] = set()
        missed = {s.id for s in segments if not s.crowd}
        for s in segments:
            for i, label in labels.items():
                if s.crowd or label != s.label:
                    continue
                a, b = ids == i, true_ids == s.id
                iou = (a & b).sum() / ((a | b) & ~(a & void)).sum()
                if iou > 0.5:
                    found.setdefault(label, [0, 0, 0, 0])[0] += iou
                    found[label][1] += 1
                    used.add(i)
                    missed.discard(s.id)
        for s in segments:
            if s.id in missed:
                found.setdefault(s.label, [0, 0, 0, 0])[3] += 1
        for i, label in labels.items():
            if i in used:
                continue
            crowds = [s.id for s in segments if s.crowd and s.label == label]
            excused = void | (np.isin(true_ids, crowds[-1:]))
            a = ids == i
            if (a & excused).sum() / a.sum() <= 0.5:
                found.setdefault(label, [0, 0, 0, 0])[2] += 1
    return found


def random_image(rng: np.random.Generator) -> tuple[np.ndarray, dict[int, int], np.ndarray, list[Segment]]:
    side = 24
    true_ids = np.zeros((side, side), dtype=np.int32)
    segments = []
    for number in range(1, 8):
        y, x, h, w = (*rng.integers(0, side - 4, 2), *rng.integers(3, 14, 2))
        true_ids[y : y + h, x : x + w] = number * 1000
        segments.append(Segment(number * 1000, int(rng.integers(CLASSES)), bool(rng.random() < 0.25)))
    segments = [s for s in segments if (true_ids == s.id).any()]
    # The prediction is the truth, moved and partly renamed, so that there are matches and mistakes.
    moved = np.roll(true_ids, int(rng.integers(0, 4)), axis=int(rng.integers(2)))
    labels = {i + 7: s.label if rng.random() < 0.8 else int(rng.integers(CLASSES)) for i, s in enumerate(segments)}
    ids = np.zeros_like(true_ids)
    for i, s in enumerate(segments):
        ids[moved == s.id] = i + 7
    true_ids[rng.random(true_ids.shape) < 0.1] = 0
    segments = [s for s in segments if (true_ids == s.id).any()]
    return ids, {i: label for i, label in labels.items() if (ids == i).any()}, true_ids, segments


def test_counts_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    images = [random_image(rng) for _ in range(60)]
    counts = PanopticQuality(CLASSES, THINGS)
    for image in images:
        counts.count(*image)
    expected, scores = by_definition(images), counts.scores()
    for label in range(CLASSES):
        overlap, hits, wrong, missed = expected[label]
        assert hits > 5
        assert counts.table[label, :3].tolist() == [hits, wrong, missed]
        assert scores.class_pq[label] == pytest.approx(overlap / (hits + wrong / 2 + missed / 2), abs=1e-9)
        assert scores.class_sq[label] == pytest.approx(overlap / hits, abs=1e-9)
    assert scores.every.pq == pytest.approx(np.mean(scores.class_pq))
    assert scores.things.pq == pytest.approx(np.mean([scores.class_pq[i] for i in THINGS]))
    assert scores.stuff.classes == 2


def test_sums_over_processes_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(1)
    images = [random_image(rng) for _ in range(30)]
    whole, parts = PanopticQuality(CLASSES), [PanopticQuality(CLASSES) for _ in range(3)]
    for number, image in enumerate(images):
        whole.count(*image)
        parts[number % 3].count(*images[-1 - number])
    states = [part.state() for part in parts]
    parts[0].count(*images[0])  # what is counted later changes no state
    whole_again = PanopticQuality(CLASSES)
    whole_again.merge(states)
    assert np.array_equal(whole.table, whole_again.table)


def test_a_crowd_and_void_excuse_predictions_but_match_nothing() -> None:
    true_ids = np.zeros((4, 8), dtype=np.int32)
    true_ids[:, :4] = 5
    ids = np.ones((4, 8), dtype=np.int32)
    for crowd, table in ((True, [0, 0, 0, 0]), (False, [1, 0, 0, 1 << 40])):
        counts = PanopticQuality(1)
        counts.count(ids, {1: 0}, true_ids, [Segment(5, 0, crowd)])
        assert counts.table[0].tolist() == table


def test_half_is_not_a_match() -> None:
    true_ids = np.ones((2, 4), dtype=np.int32)
    ids = np.where(np.arange(4) < 2, 3, 0) * np.ones((2, 1), dtype=np.int32)
    counts = PanopticQuality(1)
    counts.count(ids, {3: 0}, true_ids, [Segment(1, 0)])
    assert counts.table[0].tolist() == [0, 1, 1, 0]


def test_ids_without_a_class_and_other_sizes_are_refused() -> None:
    ids = np.ones((2, 2), dtype=np.int32)
    with pytest.raises(ValueError, match="every id of a map must have a class, got 1"):
        PanopticQuality(1).count(ids, {}, ids, [Segment(1, 0)])
    with pytest.raises(ValueError, match="must have the truth's size"):
        PanopticQuality(1).count(ids, {1: 0}, np.ones((2, 3), dtype=np.int32), [Segment(1, 0)])


def test_real_annotations_score_as_panopticapi_says(data_root: Path) -> None:
    """The prediction is the truth, moved by 9 pixels; ``expected`` was computed by panopticapi 0.1 on these files."""

    source = open_data("coco_panoptic", data_root / "panoptic_sample", split="val2017", truth="panoptic")
    counts = PanopticQuality(len(source.classes), source.classes.things)
    for name in source.names:
        truth = source.truth(name)
        assert truth.segment_ids is not None
        ids = np.roll(truth.segment_ids, 9, axis=1)
        segments = [Segment(s.id, s.label, s.crowd) for s in truth.segments]
        counts.count(ids, {s.id: s.label for s in truth.segments}, truth.segment_ids, segments)
    scores = counts.scores()
    expected = json.loads((Path(__file__).parent / "panopticapi_sample.json").read_text())
    for group, quality in (("All", scores.every), ("Things", scores.things), ("Stuff", scores.stuff)):
        assert [quality.pq, quality.sq, quality.rq] == pytest.approx(
            [expected[group][k] for k in ("pq", "sq", "rq")], abs=1e-6
        )
        assert quality.classes == expected[group]["n"]


def result(ids: np.ndarray, labels: dict[int, int]) -> SegmentationResult:
    segments = [PanopticSegment(number, label, True, 0.9) for number, label in labels.items()]
    return SegmentationResult(panoptic=PanopticResult(torch.from_numpy(ids), segments))


def test_an_image_goes_as_well_as_the_quality_of_all_its_segments_together() -> None:
    true_ids = np.array([[1, 1, 1, 1, 2, 2, 3, 3]], dtype=np.int32)
    truth = Truth(1, 8, segment_ids=true_ids, segments=[Segment(1, 0), Segment(2, 1), Segment(3, 1)])
    ids = np.array([[5, 5, 5, 6, 7, 7, 0, 0]], dtype=np.int32)
    # One match of IoU 3/4 and a perfect one; segment 6 is wrong, the truth's 3 is missed.
    metric = PanopticQuality(2)
    assert metric.add(0, result(ids, {5: 0, 6: 1, 7: 1}), truth) == pytest.approx((0.75 + 1) / (2 + 0.5 + 0.5))
    assert metric.table[:, :3].tolist() == [[1, 0, 0], [1, 1, 1]]
    void = np.zeros((1, 8), dtype=np.int32)
    assert metric.add(1, result(void, {}), Truth(1, 8, segment_ids=void)) == 0.0


def test_groups_without_a_segment_have_no_quality() -> None:
    ids = np.ones((1, 2), dtype=np.int32)
    metric = PanopticQuality(3, things=(0, 1))
    metric.count(ids, {1: 1}, ids, [Segment(1, 1)])
    found = metric.scores()
    assert (found.every.classes, found.every.of, found.things.classes, found.things.of) == (1, 3, 1, 2)
    assert (found.stuff.classes, found.stuff.of) == (0, 1)
    assert np.isnan([found.stuff.pq, found.stuff.sq, found.stuff.rq]).all()
    assert np.isnan(found.class_pq[0])
    assert found.things.pq == found.class_pq[1] == 1.0
