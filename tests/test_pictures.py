"""One palette, label PNGs, overlays whose captions keep off each other, and grids."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fssops.pictures import (
    PALETTE,
    Region,
    Tile,
    enlarged_overlay,
    grid,
    label_image,
    object_colour,
    outline,
    overlay,
    overlay_ways,
)
from fssops.structures import IGNORE


def test_label_png_holds_the_labels_and_shows_colours() -> None:
    labels = np.array([[0, 1, 2], [IGNORE, 1, 0]])
    buffer = io.BytesIO()
    label_image(labels).save(buffer, "PNG")
    again = Image.open(buffer)
    assert again.mode == "P"
    assert np.array_equal(np.asarray(again), labels)
    colours = np.asarray(again.convert("RGB"))
    assert tuple(colours[0, 0]) == (0, 0, 0)
    assert tuple(colours[0, 1]) == PALETTE[0]
    assert tuple(colours[0, 2]) == PALETTE[1]
    assert tuple(colours[1, 0]) == (224, 224, 224)


def test_the_palette_of_few_shot_labels_is_what_it_was() -> None:
    palette = label_image(np.zeros((1, 1))).getpalette()
    assert palette is not None
    assert palette[:9] == [0, 0, 0, 230, 57, 70, 29, 120, 216]
    assert palette[3 * 9 : 3 * 10] == [230, 57, 70]  # the eight colours repeat


def test_label_png_of_classes_has_their_colours() -> None:
    stored = label_image(np.array([[0, 1], [IGNORE, 7]]), [(255, 0, 0), (0, 0, 255)])
    assert np.array_equal(np.asarray(stored), [[0, 1], [IGNORE, 7]])
    plain = np.asarray(stored.convert("RGB"))
    assert plain.tolist() == [[[255, 0, 0], [0, 0, 255]], [[224, 224, 224], [0, 0, 0]]]


def test_no_two_objects_share_a_colour() -> None:
    colours = np.array([object_colour(number) for number in range(100)])
    assert len({tuple(colour) for colour in colours}) == 100
    neighbours = np.abs(colours[1:] - colours[:-1]).sum(1)
    assert neighbours.min() > 60  # those that are best told apart stand side by side


def test_overlay_outlines_a_way_in_its_colour_and_tints_its_inside() -> None:
    image = np.full((7, 7, 3), 100, dtype=np.uint8)
    labels = np.zeros((7, 7), dtype=np.int64)
    labels[1:6, 1:6] = 2
    shown = overlay_ways(image, labels, opacity=0.5)
    assert tuple(shown[1, 1]) == PALETTE[1]
    expected = [round(50 + value / 2) for value in PALETTE[1]]
    assert np.abs(shown[3, 3].astype(int) - expected).max() <= 1
    assert shown[0, 0].min() > 100  # outside is paled


def test_ignored_pixels_are_light_grey_without_an_outline() -> None:
    image = np.full((5, 5, 3), 100, dtype=np.uint8)
    labels = np.zeros((5, 5), dtype=np.int64)
    labels[1:4, 1:4] = IGNORE
    shown = overlay_ways(image, labels, opacity=0.5)
    assert (shown[1:4, 1:4] == 162).all()


def test_regions_are_drawn_in_order_and_the_rest_stays_as_it_is() -> None:
    image = np.full((60, 60, 3), 100, dtype=np.uint8)
    left, right = np.zeros((2, 60, 60), dtype=bool)
    left[5:, :40], right[5:, 20:] = True, True
    drawn = overlay(image, [Region(left, (255, 0, 0)), Region(right, (0, 0, 255))])
    assert drawn[50, 10].tolist() == [178, 50, 50]
    assert drawn[50, 50].tolist() == [50, 50, 178]
    assert np.array_equal(drawn[2, 2], image[2, 2])


def captions(image: np.ndarray, regions: list[Region]) -> np.ndarray:
    """Where captions are written: bool [H, W]."""
    plain = [Region(region.mask, region.colour) for region in regions]
    return np.asarray((overlay(image, plain) != overlay(image, regions)).any(-1))


@pytest.mark.parametrize(("left", "width"), [(601, 9), (0, 2048)])
def test_a_caption_stands_on_its_region_however_thin(left: int, width: int) -> None:
    image = np.full((1024, 2048, 3), 100, dtype=np.uint8)
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[200:900, left : left + width] = True  # 9 pixels are less than the steps in which places are looked for
    rows, columns = np.nonzero(captions(image, [Region(mask, (255, 0, 0), "pole")]))
    assert mask[int(rows.mean()), int(columns.mean())]


def test_captions_of_overlapping_regions_keep_off_each_other() -> None:
    image = np.full((200, 300, 3), 100, dtype=np.uint8)
    masks = np.zeros((3, 200, 300), dtype=bool)
    masks[0, 10:190, 10:290] = masks[1, 20:180, 20:280] = masks[2, 30:170, 30:270] = True
    regions = [Region(mask, (255, 0, 0), f"number {place}") for place, mask in enumerate(masks)]
    alone = [int(captions(image, [region]).sum()) for region in regions]
    assert int(captions(image, regions).sum()) == sum(alone)  # nothing of one is hidden by another
    crowded = [Region(masks[2], (255, 0, 0), f"number {place}") for place in range(200)]
    boxes = captions(image, crowded).sum() / alone[0]
    assert 3 < boxes < 100  # those that find no room are not written


@pytest.mark.parametrize("place", ["left", "right", "top", "bottom"])
def test_captions_do_not_leave_the_picture(place: str) -> None:
    image = np.full((120, 160, 3), 255, dtype=np.uint8)
    mask = np.zeros((120, 160), dtype=bool)
    where = {"left": np.s_[:, :9], "right": np.s_[:, -9:], "top": np.s_[:9], "bottom": np.s_[-9:]}[place]
    mask[where] = True
    centre = np.zeros((120, 160), dtype=bool)
    centre[20:100, 20:140] = True

    def ink(region: np.ndarray) -> int:
        """Dark pixels of the letters; the frame is white as the picture."""
        drawn = overlay(image, [Region(region, (255, 255, 255), "a long caption")])
        return int((drawn.astype(int).sum(-1) < 200).sum())

    assert ink(mask) == ink(centre) > 50


def test_a_caption_longer_than_the_picture_is_shortened() -> None:
    image = np.full((100, 100, 3), 255, dtype=np.uint8)
    written = captions(image, [Region(np.ones((100, 100), dtype=bool), (255, 255, 255), "a caption " * 20)])
    assert written.any()
    assert not written[:, 0].any()


def test_small_pictures_are_enlarged_before_they_are_written_on() -> None:
    mask = np.ones((10, 20), dtype=bool)
    drawn = enlarged_overlay(np.zeros((10, 20, 3), dtype=np.uint8), [Region(mask, (0, 0, 255), "name")], 64)
    assert drawn.shape == (40, 80, 3)
    assert enlarged_overlay(np.zeros((90, 80, 3), dtype=np.uint8), [], 64).shape == (90, 80, 3)


def test_outline_marks_both_sides_of_an_edge() -> None:
    labels = np.array([[0, 0, 1, 1]])
    assert outline(labels).tolist() == [[False, True, True, False]]


def test_grid_has_room_for_every_tile() -> None:
    tile = Tile(np.zeros((10, 30, 3), dtype=np.uint8), "a very long caption that cannot fit into a tile")
    picture = grid([[tile, tile], [tile, tile]], ["a", "b"], "a title " * 20, side=64)
    assert picture.width == 2 * 18 + 2 * 64 + 10
    assert picture.height > 2 * (64 + 20)
