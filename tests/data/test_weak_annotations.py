"""Boxes and scribbles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fssops.data import boxes, scribbles

EIGHT = np.ones((3, 3), dtype=int)


def test_box_is_that_of_the_largest_instance_and_others_are_neither() -> None:
    foreground = np.zeros((20, 30), dtype=bool)
    instances = np.zeros((20, 30), dtype=np.int32)
    foreground[2:6, 3:9] = True
    instances[2:6, 3:9] = 4
    foreground[10:12, 20:23] = True
    instances[10:12, 20:23] = 2
    instances[15:20, 0:30] = 7  # an instance of another class
    fg, bg = boxes.largest_instance_box(foreground, instances)
    assert fg.sum() == 24
    assert (fg[2:6, 3:9] == 1).all()
    neither = (fg == 0) & (bg == 0)
    assert neither.sum() == 6
    assert neither[10:12, 20:23].all()
    assert (bg[15:] == 1).all()


def test_box_is_tight_around_a_ragged_instance_and_inclusive() -> None:
    instances = np.zeros((9, 9), dtype=np.int32)
    instances[1, 4] = instances[7, 2] = instances[3, 8] = 5
    fg, bg = boxes.largest_instance_box(instances > 0, instances)
    assert fg[1:8, 2:9].all()
    assert fg.sum() == 7 * 7
    assert (bg == 1 - fg).all()


def test_box_of_nothing_is_empty_foreground_and_full_background() -> None:
    nothing = np.zeros((5, 5), dtype=bool)
    fg, bg = boxes.largest_instance_box(nothing, np.ones((5, 5), dtype=np.int32))
    assert not fg.any()
    assert bg.all()


def test_equal_instances_are_decided_by_the_lower_number() -> None:
    instances = np.array([[3, 0, 2]], dtype=np.int32)
    assert boxes.largest_instance_box(instances > 0, instances)[0].tolist() == [[0, 0, 1]]


def test_component_boxes_reach_one_pixel_too_far_and_keep_ignored_pixels() -> None:
    label = np.zeros((10, 12), dtype=np.uint8)
    label[2, 2] = label[4, 4] = 6  # apart
    label[6, 8] = label[7, 9] = 6  # joined at a corner
    label[3, 3] = 255
    label[9, 11] = 1
    result = boxes.component_boxes(label, 6)
    expected = np.zeros((10, 12), dtype=np.uint8)
    expected[2:4, 2:4] = expected[4:6, 4:6] = expected[6:9, 8:11] = 6
    expected[3, 3], expected[9, 11] = 255, 1
    assert (result == expected).all()
    assert boxes.component_boxes(label, 9).tolist() == label.tolist()


def blobs(seed: int, shape: tuple[int, int] = (60, 80)) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 6) > 0


@pytest.mark.parametrize("seed", range(4))
def test_skeleton_is_thin_inside_and_keeps_every_piece(seed: int) -> None:
    mask = blobs(seed)
    lines = scribbles.skeleton(mask)
    assert not (lines & ~mask).any()
    assert ndimage.label(lines, EIGHT)[1] == ndimage.label(mask, EIGHT)[1]
    # Thin: no 2 x 2 block is set, except where diagonals cross.
    block = lines[:-1, :-1] & lines[1:, :-1] & lines[:-1, 1:] & lines[1:, 1:]
    assert block.sum() <= 2


def test_skeleton_of_a_bar_is_its_middle_line() -> None:
    mask = np.zeros((11, 40), dtype=bool)
    mask[3:8, 4:36] = True
    rows, columns = np.nonzero(scribbles.skeleton(mask))
    assert set(rows) == {5}
    assert columns.max() - columns.min() > 25


def test_longest_path_leaves_side_branches_and_cuts_cycles() -> None:
    lines = np.zeros((30, 40), dtype=bool)
    lines[10, 2:32] = True
    lines[5:10, 15] = True  # a branch
    lines[25, 3:6] = True  # three pixels: too few
    (path,) = scribbles.longest_paths(lines)
    assert {tuple(p) for p in path} == {(x, 10) for x in range(2, 32)}
    ring = np.zeros((20, 20), dtype=bool)
    ring[5, 5:15] = ring[14, 5:15] = ring[5:15, 5] = ring[5:15, 14] = True
    (around,) = scribbles.longest_paths(ring)
    assert len({tuple(p) for p in around}) == len(around) >= 32


def test_bezier_starts_and_ends_on_its_path_and_stays_in_its_hull_for_any_length() -> None:
    for count in (4, 300, 2500):
        points = np.stack([np.arange(count), 5 * np.sin(np.arange(count) / 40)], axis=1)
        curve = scribbles.bezier(points)
        assert curve.shape == (scribbles.CURVE_POINTS, 2)
        assert np.isfinite(curve).all()
        assert (curve[0] == points[0]).all()
        assert (curve[-1] == points[-1]).all()
        assert np.abs(curve[:, 1]).max() <= 5 + 1e-9
        assert (np.diff(curve[:, 0]) > 0).all()


def test_bezier_of_three_points_is_the_quadratic_curve() -> None:
    points = np.array([[0.0, 0.0], [4.0, 8.0], [8.0, 0.0]])
    t = np.linspace(0, 1, scribbles.CURVE_POINTS)[:, None]
    expected = (1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]
    assert np.abs(scribbles.bezier(points) - expected).max() < 1e-12


def test_drawn_curve_is_connected_and_one_pixel_wide() -> None:
    drawn = scribbles.draw_curve(np.array([[2.0, 3.0], [40.0, 20.0], [41.0, 3.0]]), (30, 50))
    assert ndimage.label(drawn, EIGHT)[1] == 1
    assert drawn[3, 2]
    assert drawn[20, 40]
    assert drawn[3, 41]
    assert drawn.sum() < 38 + 17 + 10


@pytest.mark.parametrize("seed", range(3))
def test_scribble_is_thin_mostly_inside_and_repeats_exactly(seed: int) -> None:
    mask = blobs(seed)
    drawn = scribbles.scribble(mask)
    assert drawn.any()
    assert drawn.sum() < 0.15 * mask.sum()
    assert (drawn & mask).sum() > 0.7 * drawn.sum()
    assert (scribbles.scribble(mask) == drawn).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_any_mask_with_a_pixel_gets_a_stroke_on_it(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    drawn = scribbles.scribble(mask)
    assert drawn.shape == mask.shape
    assert (drawn & mask).any() == mask.any()


def test_scribble_map_marks_background_objects_and_leaves_the_rest_unlabelled() -> None:
    objects = [np.zeros((50, 60), dtype=bool) for _ in range(2)]
    objects[0][5:25, 5:25] = True
    objects[1][30:45, 30:55] = True
    strokes = scribbles.scribble_map(~(objects[0] | objects[1]), objects)
    assert set(np.unique(strokes)) == {0, 1, 2, 255}
    assert (strokes == 255).mean() > 0.9
    for number, mask in enumerate(objects, start=1):
        assert mask[strokes == number].mean() > 0.7


def test_one_stroke_of_the_class_is_chosen_by_the_generator() -> None:
    foreground = np.zeros((4, 30), dtype=bool)
    foreground[:, :20] = True
    strokes = np.full((4, 30), 255, dtype=np.uint8)
    strokes[0, 0:5], strokes[1, 6:12], strokes[2, 18:28], strokes[3, :] = 1, 2, 3, 0
    chosen = set()
    for seed in range(30):
        stroke = scribbles.choose_stroke(foreground, strokes, np.random.default_rng(seed))
        (number,) = np.unique(strokes[stroke])
        chosen.add(int(number))
        assert not (stroke & ~foreground).any()
    assert chosen == {1, 2, 3}
    nothing = scribbles.choose_stroke(foreground & (strokes == 0), strokes, np.random.default_rng(0))
    assert not nothing.any()


def test_too_many_objects_for_a_byte_are_an_error() -> None:
    with pytest.raises(ValueError, match="objects must be at most 254, got 255"):
        scribbles.scribble_map(np.ones((4, 4), bool), [np.ones((4, 4), bool)] * 255)
