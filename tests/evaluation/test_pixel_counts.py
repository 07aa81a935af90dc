"""Pixel counts and scores, against numbers worked out by hand and against PANet's published rules written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fssops.evaluation.pixel_counts import count_foreground, count_pixels, iou, mean_iou
from fssops.structures import IGNORE


def published_counts(prediction: np.ndarray, target: np.ndarray, ways: int) -> np.ndarray:
    """PANet's rule as its fact sheet (section 6) states it, pixel by pixel."""
    counts = np.zeros((1 + ways, 3), dtype=np.int64)
    for j in range(1 + ways):
        if not (target == j).any():
            continue
        for p, t in zip(prediction.ravel(), target.ravel(), strict=True):
            counts[j, 0] += p == j and t == j
            counts[j, 1] += p == j and t not in (j, IGNORE)
            counts[j, 2] += p != j and t == j
    return counts


@given(st.integers(1, 3), st.integers(0, 10_000))
def test_present_rule_equals_the_published_loop(ways: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    prediction = rng.integers(0, 1 + ways, (5, 7))
    target = rng.choice([0, IGNORE, *range(1, rng.integers(1, ways + 1) + 1)], (5, 7))
    counts = count_pixels(torch.from_numpy(prediction), torch.from_numpy(target), ways, "present")
    assert counts.tolist() == published_counts(prediction, target, ways).tolist()


def test_false_positives_of_an_absent_way_count_only_under_all() -> None:
    prediction = torch.tensor([[2, 2, 1, 0]])
    label = torch.tensor([[0, 1, 1, 0]])
    assert count_pixels(prediction, label, 2, "all").tolist() == [[1, 0, 1], [1, 0, 1], [0, 2, 0]]
    assert count_pixels(prediction, label, 2, "present").tolist() == [[1, 0, 1], [1, 0, 1], [0, 0, 0]]


def test_ignored_pixels_count_nowhere() -> None:
    prediction = torch.tensor([[1, 1, 0, 0]])
    label = torch.tensor([[IGNORE, 1, IGNORE, 0]])
    assert count_pixels(prediction, label, 1).tolist() == [[1, 0, 0], [1, 0, 0]]
    assert int(count_pixels(prediction, torch.full((1, 4), IGNORE), 1).sum()) == 0


def test_foreground_takes_all_ways_as_one() -> None:
    prediction = torch.tensor([[1, 2, 0, 0]])
    label = torch.tensor([[2, 2, 1, IGNORE]])
    assert count_foreground(prediction, label).tolist() == [[0, 1, 0], [2, 0, 1]]


def test_iou_of_nothing_is_nan_and_means_follow_the_rule() -> None:
    counts = torch.tensor([[3, 1, 0], [0, 0, 0], [1, 0, 1]])
    values = iou(counts)
    assert values[0] == 0.75
    assert math.isnan(values[1])
    assert float(mean_iou(values, "skip")) == pytest.approx((0.75 + 0.5) / 2)
    assert math.isnan(float(mean_iou(values, "nan")))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"must have the label's shape \[2, 3\], got \[3, 2\]"):
        count_pixels(torch.zeros(3, 2, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long), 1)
