"""Every way an outline of COCO's form can be broken, what of it is left, and how it is drawn."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fssops.data.outlines import drawable
from fssops.run_lengths import draw


def test_coco_compressed_rle_is_drawn_like_its_counts() -> None:
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    for density in (0.02, 0.5, 0.97):
        mask = rng.random((37, 53)) < density
        text = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert drawable({"size": [37, 53], "counts": text}, 53, 37) == ({"size": [37, 53], "counts": text}, [])
        assert (draw({"size": [37, 53], "counts": text}, 53, 37) == mask).all()


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "no segmentation"),
        ("x", "neither polygons nor RLE but str"),
        ([[1, 2, 3, 4, 5]], r"odd number of coordinates \(5\)"),
        ([[1, 2, "3", 4, 5, 6]], "coordinates are not numbers"),
        ([[1, 2, float("nan"), 4, 5, 6]], "coordinates are not finite"),
        ([7, 8, 9], "polygon is not a list but int"),
        ([[-9, 1, -5, 1, -5, 8]], "outside the image"),
        ({"size": [9, 9], "counts": [81]}, r"RLE size \[9, 9\] is not that of the image, \[40, 60\]"),
        ({"size": [40, 60], "counts": [10, 10]}, "RLE counts cover 20 pixels, the image has 2400"),
        ({"size": [40, 60], "counts": [2500, -100]}, "RLE counts cover"),
        ({"size": [40, 60], "counts": [2400]}, "zero area"),
        ({"size": [40, 60], "counts": "ab~"}, "not a valid compressed string"),
        ({"size": [40, 60], "counts": "PPPPPPPPPPPPPPPP"}, "not a valid compressed string"),
        ({"size": [40, 60], "counts": "`" * 6 + "0"}, "not a valid compressed string"),
        ({"size": [40, 60], "counts": [1.5, 2]}, "neither a string nor integers"),
    ],
)
def test_unusable_segmentation_is_refused_before_pycocotools(segmentation: object, reason: str) -> None:
    left, (found,) = drawable(segmentation, 60, 40)
    assert left is None
    assert re.search(reason, found), found


def test_damaged_compressed_rle_never_reaches_pycocotools_unchecked() -> None:
    """What passes the check covers exactly the image; the string decoder of pycocotools itself checks nothing."""
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(1)
    text = coco_mask.encode(np.asfortranarray((rng.random((40, 60)) < 0.5).astype(np.uint8)))["counts"].decode()
    passed = 0
    for _ in range(300):
        damaged = list(text)
        for _ in range(int(rng.integers(0, 3))):
            damaged[int(rng.integers(len(damaged)))] = chr(int(rng.integers(40, 120)))
        rle = {"size": [40, 60], "counts": "".join(damaged)}
        if drawable(rle, 60, 40)[0] is not None:
            passed += 1
            assert draw(rle, 60, 40).shape == (40, 60)
    assert 0 < passed < 300


def test_compressed_runs_whose_sum_wraps_around_to_the_picture_are_refused() -> None:
    """64 runs of 2^58 and one of 2400 add up to 2400 modulo 2^64; pycocotools would draw far outside its buffer."""
    runs = [1 << 58] * 64 + [2400]
    text = "".join(map(_count_text, (n - (runs[i - 2] if i > 2 else 0) for i, n in enumerate(runs))))
    assert drawable({"size": [40, 60], "counts": text}, 60, 40) == (
        None,
        ["RLE counts are not a valid compressed string"],
    )


def _count_text(number: int) -> str:
    """One number in COCO's variant of LEB128."""
    text = ""
    while True:
        low, number = number & 0x1F, number >> 5
        if number == (-1 if low & 0x10 else 0):
            return text + chr(low + 48)
        text += chr((low | 0x20) + 48)


def test_runs_of_the_largest_picture_are_read() -> None:
    side = 1 << 13
    text = "".join(map(_count_text, [0, side * side - 1, 1]))
    assert drawable({"size": [side, side], "counts": text}, side, side)[1] == []


def test_a_crossing_outline_of_zero_signed_area_still_counts() -> None:
    bow_tie = [10.0, 10.0, 30.0, 30.0, 30.0, 10.0, 10.0, 30.0]
    left, faults = drawable([bow_tie], 60, 40)
    assert faults == []
    assert draw(left, 60, 40).sum() > 100


SQUARE = [5.0, 5.0, 25.0, 5.0, 25.0, 25.0, 5.0, 25.0]


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ([1, 2, 3, 4], "fewer than 3 points"),
        ([], "empty polygon"),
        ([1, 2, 3, 4, 5, 6, 7], r"odd number of coordinates \(7\)"),
        ([1, 2, None, 4, 5, 6], "coordinates are not numbers, e.g. None"),
        ([1, 2, True, 4, 5, 6], "coordinates are not numbers, e.g. True"),
        ([1, 2, float("inf"), 4, 5, 6], "coordinates are not finite, or beyond 1e.15: inf"),
        ([1, 2, 10**400, 4, 5, 6], "coordinates are not finite, or beyond 1e.15: 1000"),
        ({"counts": []}, "polygon is not a list but dict"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_broken_polygon_is_left_out_alone_and_told(part: object, reason: str, place: int) -> None:
    polygons: list[object] = [SQUARE]
    polygons.insert(place, part)
    left, (told,) = drawable(polygons, 60, 40)
    assert re.fullmatch(f"polygon {place} left out: {reason}.*", told), told
    assert [part.tolist() for part in left] == [SQUARE]


@pytest.mark.parametrize("part", [[30, 30, 40, 30, 50, 30], [70, 1, 80, 1, 80, 9], [1, -9, 5, -9, 5, -1]])
def test_parts_that_cover_nothing_are_left_out_without_a_word(part: list[float]) -> None:
    left, told = drawable([part, SQUARE], 60, 40)
    assert (len(left), told) == (1, [])


@pytest.mark.parametrize(
    ("polygon", "got"),
    [
        ([10, 10, 1e8, 10, 1e8, 30, 10, 30], "1e.08"),
        ([-1e7, 10, 50, 10, 50, 30, -1e7, 30], "-1e.07"),
        ([10, 10, 50, 1e14, 50, -1e14], "-1e.14"),
        ([-1e9, -1e9, 1e9, -1e9, 1e9, 1e9], "-1e.09"),
        ([0, 20, 121, 20, 0, 39], "121"),
    ],
)
def test_coordinates_far_away_are_cut_which_changes_nothing_inside(polygon: list[float], got: str) -> None:
    (left,), (told,) = drawable([polygon], 60, 40)
    assert re.fullmatch(rf"polygon 0 cut: coordinates must be within the image's own size around it, got {got}", told)
    assert min(left[0::2]) >= -60
    assert max(left[0::2]) <= 120
    assert min(left[1::2]) >= -40
    assert max(left[1::2]) <= 80
    drawn = draw([left], 60, 40)
    ys, xs = np.mgrid[:40, :60] + 0.5
    inside, margin = _even_odd(polygon, xs, ys)
    assert inside.any()
    assert (drawn == inside)[margin > 1].all()


def _even_odd(polygon: list[float], xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether points lie inside by counting crossings, and how far they are from the lines."""
    inside, far = np.zeros(xs.shape, dtype=bool), np.full(xs.shape, np.inf)
    corners = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        crosses = (ay > ys) != (by > ys)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (xs < ax + (ys - ay) * (bx - ax) / (by - ay))
        length = np.hypot(bx - ax, by - ay)
        far = np.minimum(far, np.abs((bx - ax) * (ys - ay) - (by - ay) * (xs - ax)) / length)
    return inside, far


def test_coordinates_at_the_margin_are_left_as_they_are() -> None:
    polygon = [-60.0, -40.0, 120.0, -40.0, 120.0, 80.0, -60.0, 80.0]
    (left,), told = drawable([polygon], 60, 40)
    assert (left.tolist(), told) == (polygon, [])
    assert draw([left], 60, 40).all()


@pytest.mark.parametrize("size", [(1 << 13, 1 << 13), (1 << 16, 1 << 10)])
def test_an_outline_that_would_take_gigabytes_to_draw_is_left_out(size: tuple[int, int]) -> None:
    width, height = size
    zigzag = [value for n in range(1000) for value in (0 if n % 2 else width, n * height / 1000)]
    left, (told,) = drawable([zigzag, [5, 5, 25, 5, 25, 25]], width, height)
    assert len(left) == 1
    assert re.fullmatch(r"polygon 0 left out: outline is longer than 4194304 pixels: \d+", told)


@pytest.mark.parametrize("counts", [["1200", 200.0, 1000], [1200, "200", "1000"], [1200.0, 200.0, 1000.0]])
def test_run_lengths_that_are_plainly_numbers_are_read(counts: list[object]) -> None:
    left, told = drawable({"size": [40.0, "60"], "counts": counts}, 60, 40)
    assert told == []
    assert draw(left, 60, 40).sum() == 200


@pytest.mark.parametrize("counts", [[1200, 200, 1000.5], [2400, True], [1 << 70, 1], [[2400], 0], None, {"a": 1}])
def test_run_lengths_that_are_no_numbers_are_refused(counts: object) -> None:
    assert drawable({"size": [40, 60], "counts": counts}, 60, 40) == (
        None,
        ["RLE counts are neither a string nor integers"],
    )
