"""IoUs and accuracies of label maps by hand, and boundaries against their published erosion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fssops.evaluation.metrics.metric import Coverage
from fssops.evaluation.metrics.semantic import SemanticIoU, boundary_of, boundary_width, most_confused
from fssops.structures import SegmentationResult, SemanticResult
from fssops.truth import Truth


def test_scores_by_hand() -> None:
    truth = np.array([[0, 0, 0, 1], [1, 1, 255, 255]])
    prediction = np.array([[0, 0, 1, 1], [1, -1, 0, 2]])
    counts = SemanticIoU(3)
    counts.count(prediction, truth)
    found = counts.scores()
    # class 0: 2 hits of 3, nothing false; class 1: 2 hits of 3, one false; class 2 is not in the truth.
    assert found.class_iou[:2] == pytest.approx([2 / 3, 2 / 4])
    assert np.isnan(found.class_iou[2])
    assert found.miou == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.fwiou == pytest.approx(0.5 * 2 / 3 + 0.5 * 1 / 2)
    assert found.pixel_accuracy == pytest.approx(4 / 6)
    assert found.mean_accuracy == pytest.approx(2 / 3)


def test_ignored_pixels_count_nowhere() -> None:
    truth, prediction = np.full((4, 4), 255), np.zeros((4, 4), dtype=int)
    counts = SemanticIoU(2, boundary=True)
    counts.count(prediction, truth)
    assert int(counts.confusion.sum()) == int(counts.edges.sum()) == 0
    assert np.isnan(counts.scores().miou)


def test_sums_over_processes_equal_one_process() -> None:
    rng = np.random.default_rng(0)
    maps = [
        (rng.integers(-1, 4, (9, 8)), np.where(rng.random((9, 8)) < 0.1, 255, rng.integers(0, 4, (9, 8))))
        for _ in range(6)
    ]
    whole, merged = SemanticIoU(4, boundary=True), SemanticIoU(4, boundary=True)
    parts = [SemanticIoU(4, boundary=True) for _ in range(2)]
    for number, (prediction, truth) in enumerate(maps):
        for counts in (whole, parts[number % 2]):
            counts.count(prediction, truth)
    merged.merge([part.state() for part in reversed(parts)])
    assert int(whole.edges.sum()) > 0
    for name in ("confusion", "edges"):
        assert torch.equal(getattr(merged, name), getattr(whole, name))


def test_an_image_goes_as_well_as_the_mean_over_the_classes_that_it_shows() -> None:
    labels = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 2]]), 3).permute(2, 0, 1).float()
    result = SegmentationResult(semantic=SemanticResult(labels))
    truth = Truth(1, 4, label_map=np.array([[0, 0, 1, 255]], dtype=np.uint8))
    assert SemanticIoU(3).add(0, result, truth) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert SemanticIoU(3).add(0, result, Truth(1, 4, label_map=np.full((1, 4), 255, dtype=np.uint8))) == 0.0


def test_boundary_is_what_erosion_takes_away() -> None:
    from scipy import ndimage

    mask = np.random.default_rng(0).random((40, 50)) < 0.5
    mask = ndimage.binary_opening(mask, iterations=1) | (np.add.outer(np.arange(40), np.arange(50)) < 45)
    for width in (1, 3):
        eroded = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width)  # outside the image counts as 0
        assert np.array_equal(boundary_of(mask, width), mask & ~eroded)
    assert boundary_width(480, 640) == 16
    assert boundary_width(4, 4) == 1


def test_boundary_iou_of_equal_maps_is_one_and_falls_with_a_shift() -> None:
    truth = np.zeros((60, 80), dtype=np.uint8)
    truth[20:40, 20:60] = 1
    counts, moved = SemanticIoU(2, boundary=True), SemanticIoU(2, boundary=True)
    counts.count(truth, truth)
    moved.count(np.roll(truth, 2, axis=1), truth)
    assert counts.scores().boundary_iou == 1.0
    assert moved.scores().boundary_iou < moved.scores().miou < 1.0


def test_wrong_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="must have the truth's size"):
        SemanticIoU(2).count(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"truth must hold 0..1 and 255, got 0..7"):
        SemanticIoU(2).count(np.zeros((1, 2)), np.array([[0, 7]]))


def test_most_confused_pairs_come_first() -> None:
    table = np.array([[8, 2, 0, 0], [5, 5, 0, 0], [0, 0, 3, 0]])
    found = most_confused(table, ["a", "b", "c"], 2)
    assert [(row["truth"], row["predicted"], row["share"]) for row in found] == [("b", "a", 0.5), ("a", "b", 0.2)]


def test_boundaries_are_counted_class_by_class_without_ignored_pixels() -> None:
    """A picture of one row: every pixel touches the upper border, so boundaries are the classes themselves."""
    counts = SemanticIoU(4, boundary=True)
    counts.count(np.array([[0, 0, 1, 2, 3, 0]]), np.array([[0, 0, 0, 1, 255, 255]]))
    assert counts.edges.tolist() == [[2, 3], [0, 2], [0, 1], [0, 0]]
    found = counts.scores()
    # Class 2 is nowhere in the truth: what was taken for it counts against the others alone.
    assert found.class_boundary_iou[:2] == pytest.approx([2 / 3, 0.0])
    assert np.isnan(found.class_boundary_iou[2:]).all()
    assert found.coverage() == {"mIoU": Coverage(2, 4), "boundary IoU": Coverage(2, 4)}
    assert list(found.columns()) == ["IoU", "accuracy", "boundary IoU"]
    assert found.summary()["boundary IoU"] == pytest.approx(1 / 3)


def test_a_class_without_pixels_is_confused_with_none() -> None:
    table = np.array([[1, 1, 0], [0, 0, 0]])
    assert [row["truth"] for row in most_confused(table, ["a", "b"])] == ["a"]
