"""What the values of an object's mask mean is decided by one rule, or refused with the setting that decides it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fssops.data.errors import MaskValueError
from fssops.data.images import palette_of
from fssops.data.layouts.folder import FolderSource
from fssops.data.object_masks import object_area


def area(*values: Any, **settings: Any) -> list[int]:
    return object_area(np.array([values]), "m.png", **settings)[0].tolist()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((False, True), [0, 1]),
        ((0, 1), [0, 1]),
        ((0, 255), [0, 1]),
        ((0, 38), [0, 1]),
        ((0, 1, 255), [0, 1, 255]),
        ((255, 255), [1, 1]),
        ((0, 0), [0, 0]),
        ((0.0, 1.0), [0, 1]),
    ],
)
def test_two_values_say_what_they_mean(values: Any, expected: list[int]) -> None:
    assert area(*values) == expected


@pytest.mark.parametrize(
    "values",
    [(0, 1, 2), (0, 254, 255), (0, 15, 255), (0, 128, 254), (0.02, 0.98), (-8.0, 8.0), (0.0, 0.5), (1, 2)],
)
def test_other_values_are_refused_with_the_settings_that_decide(values: Any) -> None:
    with pytest.raises(MaskValueError, match=r"m\.png: mask must be of 0 and one other value.*say object=.*threshold="):
        area(*values)


def test_settings_decide() -> None:
    assert area(0, 15, 255, object=15) == [0, 1, 255]
    assert area(0, 15, 255, object=255) == [0, 0, 1]
    assert area(0, 15, 7, 255, object=15, ignore=7) == [0, 1, 255, 0]
    assert area(0, 1, 2, 3, object=(1, 3)) == [0, 1, 0, 1]
    assert area(0, 127, 128, 254, 255, threshold=128) == [0, 0, 1, 1, 1]
    assert area(0.02, 0.98, threshold=0.5) == [0, 1]
    assert area(-8.0, 8.0, threshold=0) == [0, 1]
    assert area(0, 2, 9, ignore=9) == [0, 1, 255]
    with pytest.raises(ValueError, match="object or threshold, got both"):
        area(0, 1, object=1, threshold=0.5)
    with pytest.raises(MaskValueError, match="must be finite"):
        area(0.0, float("nan"))


def two_colours(file: Path, first: int, second: int) -> Path:
    picture = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "L").convert("P")
    picture.putpalette([first] * 3 + [second] * 3)
    picture.putdata([0, 1, 1, 0])
    picture.save(file)
    return file


def test_a_palette_that_looks_the_other_way_round_is_refused(tmp_path: Path) -> None:
    values = np.array([[0, 1], [1, 0]])
    usual, inverted = (palette_of(two_colours(tmp_path / f"{first}.png", first, 255 - first)) for first in (0, 255))
    assert object_area(values, "m", colours=usual).tolist() == [[0, 1], [1, 0]]
    assert object_area(values, "m", colours=inverted, object=0).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(MaskValueError, match=r"darker than its object, got a palette .* say object=0 or object=1"):
        object_area(values, "m", colours=inverted)


def folder_of(root: Path, *masks: list[int]) -> FolderSource:
    (root / "cup" / "images").mkdir(parents=True)
    (root / "cup" / "masks").mkdir()
    for number, mask in enumerate(masks):
        values = np.array([mask], np.uint8)
        Image.fromarray(np.zeros((*values.shape, 3), np.uint8)).save(root / "cup" / "images" / f"{number}.png")
        Image.fromarray(values).save(root / "cup" / "masks" / f"{number}.png")
    return FolderSource(root)


def labels(source: FolderSource) -> list[list[int]]:
    return [source.truth(name).label_map[0].tolist() for name in source.names]  # type: ignore[index]


def test_masks_of_one_bit_among_others_do_not_change_these(tmp_path: Path) -> None:
    assert labels(folder_of(tmp_path, [0, 255], [0, 1], [255, 0])) == [[0, 1], [0, 1], [1, 0]]


def test_where_a_mask_holds_1_and_255_white_is_ignored_in_all(tmp_path: Path) -> None:
    assert labels(folder_of(tmp_path, [0, 1, 255], [0, 0, 255])) == [[0, 1, 255], [0, 0, 255]]


def test_grey_outlines_in_a_folder_need_a_threshold(tmp_path: Path) -> None:
    source = folder_of(tmp_path, [0, 100, 255])
    with pytest.raises(MaskValueError, match=r"masks/0\.png: mask must .*threshold=128"):
        labels(source)
    assert labels(FolderSource(tmp_path, threshold=128)) == [[0, 0, 1]]
    assert labels(FolderSource(tmp_path, object=100)) == [[0, 1, 255]]
