"""Outlines of masks: drawn again by COCO's rule they are the masks, and they have no needless points."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from fssops.polygons import polygons
from fssops.run_lengths import draw


def drawn(mask: np.ndarray) -> np.ndarray:
    return draw(polygons(mask), mask.shape[1], mask.shape[0])


@pytest.mark.parametrize("smooth", [0.0, 0.8, 2.5])
def test_polygons_of_any_mask_give_it_back(smooth: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(25):
        height, width = rng.integers(3, 50, 2)
        mask = ndimage.gaussian_filter(rng.random((height, width)), smooth) > 0.5
        mask[int(height) // 2, int(width) // 2] = True
        assert np.array_equal(drawn(mask), mask)


def test_holes_and_what_lies_in_them_stay() -> None:
    mask = np.zeros((30, 40), dtype=bool)
    mask[2:28, 3:36] = True
    mask[5:20, 6:15] = mask[8:25, 20:33] = False
    mask[10:12, 8:10] = True
    assert np.array_equal(drawn(mask), mask)
    assert len(polygons(mask)) == 2


def test_a_straight_side_has_no_points_between_its_ends() -> None:
    mask = np.zeros((60, 90), dtype=bool)
    mask[10:50, 20:80] = True
    (outline,) = polygons(mask)
    assert len(outline) == 8  # a corner pixel is cut from the middle of one side to that of the other
    assert (outline.min(axis=0).tolist(), outline.max(axis=0).tolist()) == ([20.0, 10.0], [80.0, 50.0])


def test_an_empty_mask_has_no_polygon_and_a_pixel_has_one() -> None:
    mask = np.zeros((4, 5), dtype=bool)
    assert polygons(mask) == []
    mask[1, 3] = True
    assert len(polygons(mask)) == 1
    assert np.array_equal(drawn(mask), mask)
