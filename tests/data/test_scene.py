"""The movements of a scene: image, every kind of map, polygons and masks move alike, each by its own rule of pixels.

The scene has no symmetry, so that what is left out, turned the wrong way or not moved at all differs everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from PIL import Image

from fssops.data.augmentation.scene import (
    BLACK,
    DETECTRON2,
    FILL,
    GREY,
    MEAN_COLOUR,
    MM_FORMER,
    MSANET,
    PANET,
    NearestRule,
    Resampling,
    Scene,
    cropped,
    flipped,
    nearest_pixels,
    padded,
    resized,
    rotated,
)
from fssops.normalisation import MEAN
from fssops.structures import IGNORE
from fssops.truth import Segment, draw

POLYGON = np.array([[3.0, 2.0], [14.0, 2.0], [14.0, 5.0], [6.0, 5.0], [6.0, 9.5], [3.0, 9.5]])
DTYPES = {"segments": np.int32, "instance": np.int32, "objects": np.int32, "everything": np.uint16}


def scene(height: int = 13, width: int = 21) -> Scene:
    """Random pixels and a different random map of every kind; an L of polygons and a random mask as objects."""
    rng = np.random.default_rng([height, width])
    maps = {}
    for name in FILL:
        dtype = DTYPES.get(name, np.uint8)
        maps[name] = rng.integers(1, 70000 if dtype is np.int32 else 200, (height, width)).astype(dtype)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Scene(image, maps, [Segment(7, 1)], [[POLYGON.copy()], rng.random((height, width)) < 0.5], [4, 2])


def moved_alike(
    moved: Scene,
    image: np.ndarray,
    of_map: Callable[[np.ndarray, int], np.ndarray],
    polygon: np.ndarray,
    before: Scene | None = None,
) -> None:
    """Image, maps, polygon and mask are what they should be, with their types; the rest of the scene is as before."""
    before = before or scene()
    assert np.array_equal(moved.image, image)
    assert moved.maps.keys() == FILL.keys()
    for name, values in before.maps.items():
        expected = of_map(values, FILL[name])
        assert np.array_equal(moved.maps[name], expected), name
        assert moved.maps[name].dtype == values.dtype, name
    corners, mask = moved.outlines
    assert isinstance(mask, np.ndarray)
    assert mask.dtype == bool
    assert np.array_equal(mask, of_map(np.asarray(before.outlines[1]), 0))
    np.testing.assert_allclose(corners[0], polygon, atol=1e-9)
    assert (moved.segments, moved.labels) == ([Segment(7, 1)], [4, 2])
    assert moved.size == image.shape[:2]


def test_a_flip_mirrors_everything() -> None:
    before = scene()
    polygon = POLYGON * [-1, 1] + [21, 0]
    moved_alike(flipped(before), before.image[:, ::-1], lambda values, _: values[:, ::-1], polygon)
    corners, drawn = flipped(before).outlines[0], draw([POLYGON], 13, 21)
    assert np.array_equal(draw(corners, 13, 21), drawn[:, ::-1])
    assert not np.array_equal(drawn, drawn[:, ::-1])


@pytest.mark.parametrize(("top", "left", "height", "width"), [(2, 5, 4, 9), (3, 1, 100, 2)])
def test_a_crop_cuts_everything_and_leaves_away_what_lies_outside(top: int, left: int, height: int, width: int) -> None:
    before, window = scene(), (slice(top, top + height), slice(left, left + width))
    result = cropped(before, top, left, height, width)
    moved_alike(result, before.image[window], lambda values, _: values[window], POLYGON - [left, top])


@pytest.mark.parametrize("colour", [GREY, BLACK, MEAN_COLOUR], ids=["grey", "black", "mean"])
@pytest.mark.parametrize(("top", "left"), [(0, 0), (2, 3)])
def test_padding_puts_everything_on_a_canvas_of_the_fill_values(colour: np.ndarray, top: int, left: int) -> None:
    before, size = scene(), (18, 26)
    inside = np.zeros(size, dtype=bool)
    inside[top : top + 13, left : left + 21] = True

    def canvas(values: np.ndarray, fill: int) -> np.ndarray:
        result = np.full(size, fill, dtype=values.dtype)
        result[inside] = values.ravel()
        return result

    image = np.where(inside[..., None], 0, colour).astype(colour.dtype)
    image[inside] = before.image.reshape(-1, 3)
    result = padded(before, size, top=top, left=left, colour=colour)
    moved_alike(result, image, canvas, POLYGON + np.array([left, top]))
    assert result.image.dtype == colour.dtype


def test_padding_is_published_grey_and_leaves_alone_what_is_large_enough() -> None:
    before = scene()
    assert padded(before, (13, 21)) is before
    assert padded(before, (5, 9)) is before
    tall = padded(before, (20, 5))
    assert tall.size == (20, 21)
    assert (tall.image[13:] == 128).all()
    assert {name: int(tall.maps[name][-1, -1]) for name in FILL} == FILL
    unknown = {name for name, value in FILL.items() if value == IGNORE}
    assert unknown == {"label", "base", "everything", "scribble"}
    assert {FILL[name] for name in FILL.keys() - unknown} == {0}
    np.testing.assert_allclose(MEAN_COLOUR, 255 * np.array(MEAN), rtol=1e-6)


def nearest(i: int, old: int, new: int, rule: str) -> int:
    """The rules as the field writes them, in exact numbers."""
    offset = Fraction(1, 2) if rule == "centres" else 0
    return floor((i + offset) * Fraction(old, new))


@pytest.mark.parametrize("rules", [PANET, MSANET, MM_FORMER, DETECTRON2], ids=["panet", "msanet", "mm_former", "d2"])
@pytest.mark.parametrize("size", [(9, 33), (30, 14), (13, 40)])
def test_resizing_takes_maps_to_the_nearest_pixel_and_polygons_along(rules: Resampling, size: tuple[int, int]) -> None:
    before = scene()

    def expected(values: np.ndarray, rule: str) -> np.ndarray:
        rows, columns = (
            [nearest(i, old, new, rule) for i in range(new)] for old, new in ((13, size[0]), (21, size[1]))
        )
        return values[rows][:, columns]

    result = resized(before, size, rules)
    for name, values in before.maps.items():
        rule = rules.nearest_label if name == "label" and rules.nearest_label else rules.nearest
        assert np.array_equal(result.maps[name], expected(values, rule)), name
        assert result.maps[name].dtype == values.dtype
    assert np.array_equal(result.outlines[1], expected(np.asarray(before.outlines[1]), rules.nearest))
    np.testing.assert_allclose(result.outlines[0][0], POLYGON * [size[1] / 21, size[0] / 13])
    assert (result.segments, result.labels, result.size) == (before.segments, before.labels, size)


def test_the_rules_of_published_systems() -> None:
    assert (PANET.antialias, PANET.nearest, PANET.nearest_label) == (True, "centres", None)
    assert (MSANET.antialias, MSANET.nearest, MSANET.nearest_label) == (False, "corners", None)
    assert (MM_FORMER.antialias, MM_FORMER.nearest, MM_FORMER.nearest_label) == (True, "corners", None)
    assert (DETECTRON2.antialias, DETECTRON2.nearest, DETECTRON2.nearest_label) == (True, "centres", "exact_corners")


@pytest.mark.parametrize("rule", ["centres", "corners", "exact_corners"])
@pytest.mark.parametrize(("old", "new"), [(7, 4), (7, 11), (480, 370), (333, 468), (5, 5), (1, 9), (9, 1)])
def test_nearest_pixels_follow_their_rule(rule: NearestRule, old: int, new: int) -> None:
    assert nearest_pixels(old, new, rule).tolist() == [nearest(i, old, new, rule) for i in range(new)]


def test_only_exact_corners_are_spared_the_rounding_of_the_ratio() -> None:
    # 49 * (2 / 98) is a little less than 1 in doubles, as OpenCV reckons.
    assert (nearest_pixels(2, 98, "corners")[49], nearest_pixels(2, 98, "exact_corners")[49]) == (0, 1)


def test_images_are_resized_by_pillow_or_as_opencv_does() -> None:
    before = scene()
    for size in ((20, 20), (7, 30), (40, 5)):
        expected = Image.fromarray(before.image).resize(size[::-1], Image.Resampling.BILINEAR)
        assert np.array_equal(resized(before, size, PANET).image, np.asarray(expected))
        fractions = Scene(before.image * np.float32(0.9))
        shown = resized(fractions, size, PANET).image
        assert shown.dtype == np.float32
        assert np.abs(shown - 0.9 * np.asarray(expected)).max() < 1.0
        plain = resized(before, size, MSANET).image
        assert plain.dtype == np.float32
        places = [
            ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1) for old, new in zip((13, 21), size, strict=True)
        ]
        low = [np.floor(place).astype(int) for place in places]
        high = [np.minimum(first + 1, old - 1) for first, old in zip(low, (13, 21), strict=True)]
        y, x = (place - first for place, first in zip(places, low, strict=True))
        pixels = before.image.astype(np.float64)
        upper, lower = (
            pixels[rows][:, low[1]] * (1 - x)[:, None] + pixels[rows][:, high[1]] * x[:, None]
            for rows in (low[0], high[0])
        )
        assert np.abs(plain - (upper * (1 - y)[:, None, None] + lower * y[:, None, None])).max() < 1e-3
    assert resized(before, (13, 21), MSANET) is before


def test_a_quarter_turn_is_exact_and_counterclockwise() -> None:
    before = scene(21, 21)
    polygon = np.stack([POLYGON[:, 1], 21 - POLYGON[:, 0]], axis=1)
    moved_alike(rotated(before, 90.0), np.rot90(before.image), lambda values, _: np.rot90(values), polygon, before)


@pytest.mark.parametrize("degrees", [-25.0, 8.0])
def test_a_turn_fills_corners_and_takes_objects_along(degrees: float) -> None:
    height, width = 60, 90
    label = draw([POLYGON * 5], height, width)
    maps = {name: label.astype(DTYPES.get(name, np.uint8)) for name in FILL}
    before = Scene(
        np.repeat(label[..., None] * np.uint8(255), 3, axis=2), maps, outlines=[[POLYGON * 5], label], labels=[0, 0]
    )
    result = rotated(before, degrees, np.array([90, 60, 30], dtype=np.float32))
    assert result.image.dtype == np.float32
    outside = result.maps["label"] == IGNORE
    assert 0.05 < outside.mean() < 0.4
    assert np.abs(result.image[0, 0] - [90, 60, 30]).max() < 1e-3
    for name, values in result.maps.items():
        assert values.dtype == maps[name].dtype
        assert (values[outside] == FILL[name]).all(), name
        assert np.array_equal(values[~outside], result.maps["label"][~outside]), name
    assert np.array_equal(result.outlines[1], result.maps["mask"] == 1)
    drawn = draw(result.outlines[0], height, width)
    assert (drawn & result.outlines[1]).sum() > 0.95 * (drawn | result.outlines[1]).sum()
    assert ((result.image[..., 0] > 127) != (result.outlines[1] == 1))[~outside].mean() < 0.02
    unmoved = draw([POLYGON * 5], height, width)
    assert (unmoved & result.outlines[1]).sum() < 0.95 * (unmoved | result.outlines[1]).sum()


def test_corners_from_outside_take_the_mean_colour() -> None:
    result = rotated(Scene(np.full((60, 60, 3), 255, dtype=np.uint8), {"label": np.ones((60, 60), np.uint8)}), 10.0)
    assert np.abs(result.image[0, 0] - 255 * np.array(MEAN)).max() < 1e-3
    assert np.abs(result.image[30, 30] - 255).max() < 1e-3
    assert result.maps["label"][0, 0] == IGNORE


def test_a_map_whose_fill_nothing_says_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Scene: maps must be among label, base, .*, got 'depth'"):
        Scene(np.zeros((2, 2, 3), np.uint8), {"depth": np.zeros((2, 2))})
