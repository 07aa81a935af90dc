"""Every way a segmentation of COCO's form can be broken, and how the others are drawn."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fssops.data import coco_json
from fssops.run_lengths import draw


def test_coco_compressed_rle_is_drawn_like_its_counts() -> None:
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    for density in (0.02, 0.5, 0.97):
        mask = rng.random((37, 53)) < density
        text = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert coco_json.fault({"size": [37, 53], "counts": text}, 53, 37) is None
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
    found = coco_json.fault(segmentation, 60, 40)
    assert found is not None
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
        if coco_json.fault(rle, 60, 40) is None:
            passed += 1
            assert draw(rle, 60, 40).shape == (40, 60)
    assert 0 < passed < 300


def test_compressed_runs_whose_sum_wraps_around_to_the_picture_are_refused() -> None:
    """64 runs of 2^58 and one of 2400 add up to 2400 modulo 2^64; pycocotools would draw far outside its buffer."""
    runs = [1 << 58] * 64 + [2400]
    text = "".join(map(_count_text, (n - (runs[i - 2] if i > 2 else 0) for i, n in enumerate(runs))))
    assert coco_json.fault({"size": [40, 60], "counts": text}, 60, 40) == "RLE counts are not a valid compressed string"


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
    assert coco_json.fault({"size": [side, side], "counts": text}, side, side) is None


def test_a_crossing_outline_of_zero_signed_area_still_counts() -> None:
    bow_tie = [10.0, 10.0, 30.0, 30.0, 30.0, 10.0, 10.0, 30.0]
    assert coco_json.fault([bow_tie], 60, 40) is None
    assert draw([bow_tie], 60, 40).sum() > 100
