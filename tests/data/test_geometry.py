"""Geometric augmentations: their sizes, their draws, and what 255 does in them."""

from __future__ import annotations

import numpy as np
import pytest

from fssops.data.augmentation.geometry import (
    LargeScaleJitter,
    Letterbox,
    ObjectCrop,
    OneOfTwo,
    Pad,
    RandomCrop,
    RandomFlip,
    RandomRangeCrop,
    RandomRotate,
    RandomScale,
    Resize,
    ResizeShortestEdge,
    shortest_edge_size,
)
from fssops.data.augmentation.scene import DETECTRON2, MM_FORMER, MSANET, PANET, Scene, resized, rotated
from fssops.normalisation import MEAN
from fssops.structures import IGNORE
from fssops.truth import Segment

IMAGE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
LABEL = np.random.default_rng(1).integers(0, 4, (37, 53)).astype(np.uint8)


def scene() -> Scene:
    """Random pixels and labels: nothing in it is symmetric."""
    return Scene(IMAGE.copy(), {"label": LABEL.copy()})


def rectangle(height: int = 30, width: int = 50) -> Scene:
    """A rectangle of class 1, which the image shows in white."""
    label = np.zeros((height, width), dtype=np.uint8)
    label[10:20, 15:35] = 1
    return Scene(np.repeat((255 * label)[..., None], 3, axis=2), {"label": label})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Recorder:
    """A generator that gives what it is told: shares of the range that is asked for."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.values.pop(0)

    def random(self) -> float:
        return self.values.pop(0)

    def integers(self, high: int) -> int:
        return int(high * self.values.pop(0))


def test_a_flip_turns_image_and_every_map_or_neither_in_half_of_the_draws() -> None:
    maps = {"label": LABEL, "instance": LABEL.astype(np.int32), "segments": LABEL.astype(np.int32)}
    both, generator = Scene(IMAGE, maps, [Segment(1, 1)]), rng()
    turned = 0
    for _ in range(200):
        result = RandomFlip()(both, generator)
        mirrored = np.array_equal(result.image, IMAGE[:, ::-1])
        assert mirrored or np.array_equal(result.image, IMAGE)
        for name, values in maps.items():
            assert np.array_equal(result.maps[name], values[:, ::-1] if mirrored else values)
        turned += mirrored
    assert 70 < turned < 130
    assert np.array_equal(RandomFlip(1.0)(both, rng()).image, IMAGE[:, ::-1])
    assert RandomFlip(0.0)(both, rng()) is both
    assert RandomFlip(0.3)(both, Recorder(0.3)) is both  # type: ignore[arg-type]


def test_rotation_fills_labels_with_255_and_images_with_the_mean() -> None:
    flat = Scene(np.full((60, 60, 3), 255, dtype=np.uint8), {"label": np.ones((60, 60), np.uint8)})
    results = [RandomRotate(degrees=10, p=1.0)(flat, rng(seed)) for seed in range(10)]
    outside = [r for r in results if r.maps["label"][0, 0] == 255]
    assert len(outside) >= 5
    for result in results:
        assert set(np.unique(result.maps["label"])) <= {1, 255}
        assert result.maps["label"][30, 30] == 1
        assert np.abs(result.image[30, 30] - 255).max() < 1e-3
    for result in outside:
        assert np.abs(result.image[0, 0] - 255 * np.array(MEAN)).max() < 1e-3


def test_rotation_turns_either_way_within_its_limit_in_half_of_the_draws() -> None:
    for share, degrees in ((0.0, -20.0), (1.0, 20.0), (0.75, 10.0)):
        result = RandomRotate(degrees=20)(scene(), Recorder(0.4, share))  # type: ignore[arg-type]
        assert np.array_equal(result.maps["label"], rotated(scene(), degrees).maps["label"])
        assert np.array_equal(result.image, rotated(scene(), degrees).image)
    same = scene()
    assert RandomRotate()(same, Recorder(0.5)) is same  # type: ignore[arg-type]


def test_scale_keeps_the_aspect_and_stays_in_its_range() -> None:
    for seed in range(10):
        height, width = RandomScale(0.8, 1.25)(scene(), rng(seed)).size
        assert 0.8 * 37 - 1 <= height <= 1.25 * 37 + 1
        assert abs(height / 37 - width / 53) < 1.0 / 37
    for share, size in ((0.0, (30, 42)), (1.0, (46, 66))):
        result, expected = RandomScale(0.8, 1.25)(scene(), Recorder(share)), resized(scene(), size, MSANET)  # type: ignore[arg-type]
        assert np.array_equal(result.image, expected.image)
        assert np.array_equal(result.maps["label"], expected.maps["label"])


def test_object_crop_pads_small_images_around_the_centre() -> None:
    result = ObjectCrop((50, 53))(scene(), rng())
    assert result.size == (50, 53)
    assert (result.maps["label"][6:43] == LABEL).all()
    assert (result.maps["label"][:6] == 255).all()
    assert (result.maps["label"][43:] == 255).all()
    assert np.array_equal(result.image[6:43], IMAGE)
    assert np.abs(result.image[0] - 255 * np.array(MEAN)).max() < 1e-3


def test_object_crop_is_drawn_again_until_it_keeps_the_object() -> None:
    label = np.zeros((100, 100), dtype=np.uint8)
    label[70:80, 70:80] = 3
    label[0, :] = 255
    picture = Scene(np.zeros((100, 100, 3), dtype=np.uint8), {"label": label})

    def pixels(crop: ObjectCrop) -> list[int]:
        return [int((crop(picture, rng(seed)).maps["label"] == 3).sum()) for seed in range(40)]

    assert min(pixels(ObjectCrop((60, 60)))) >= 85
    assert min(pixels(ObjectCrop((60, 60), tries=0))) < 85
    assert min(pixels(ObjectCrop((60, 60), keep=0.0))) < 85
    label[20:30, 20:30] = 2  # both cannot be had at once
    assert min(pixels(ObjectCrop((30, 30), tries=1000, classes=(3,)))) >= 85
    assert max(pixels(ObjectCrop((30, 30), tries=1000, classes=(2,)))) == 0


@pytest.mark.parametrize(
    ("size", "inner"),
    [
        ((37, 53), (328, 472)),
        ((500, 375), (472, 352)),
        ((1, 1), (472, 472)),
        ((9, 900), (1, 472)),
        ((900, 9), (472, 1)),
    ],
)
def test_letterbox_floors_to_multiples_of_eight_and_ignores_the_rest(
    size: tuple[int, int], inner: tuple[int, int]
) -> None:
    picture = Scene(np.full((*size, 3), 200, dtype=np.uint8), {"label": np.ones(size, np.uint8)})
    result = Letterbox((473, 473))(picture)
    assert Letterbox((473, 473)).inner_size(*size) == inner
    assert result.size == (473, 473)
    assert (result.maps["label"][: inner[0], : inner[1]] == 1).all()
    assert (result.maps["label"] == 255).sum() == 473 * 473 - inner[0] * inner[1]
    assert (result.image[inner[0] :] == 0).all()
    assert (result.image[:, inner[1] :] == 0).all()
    assert np.abs(result.image[: inner[0], : inner[1]] - 200).max() < 1e-3


def test_letterbox_resizes_without_antialiasing() -> None:
    result, expected = Letterbox((25, 25))(scene()), resized(scene(), (16, 24), MSANET)
    assert np.array_equal(result.image[:16, :24], expected.image)
    assert np.array_equal(result.maps["label"][:16, :24], expected.maps["label"])


def test_resizing_takes_the_rules_it_is_given() -> None:
    label = np.arange(7, dtype=np.uint8)[None].repeat(7, 0)
    picture = Scene(np.zeros((7, 7, 3), np.uint8), {"label": label})
    assert Resize((5, 5), MM_FORMER)(picture).maps["label"][0].tolist() == [0, 1, 2, 4, 5]
    assert Resize((5, 5))(picture).maps["label"][0].tolist() == [0, 2, 3, 4, 6]
    assert Resize((5, 9)).inner_size(7, 7) == (5, 9)


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 640), 800, 1000, (667, 1000)),
        ((360, 480), 256, 2048, (256, 341)),
        ((100, 100), 512, 2048, (512, 512)),
        ((6000, 1), 512, 1333, (1333, 1)),  # a ruler: less than half a pixel is one
    ],
)
def test_short_side_sizes(size: tuple[int, int], short: int, longest: int, expected: tuple[int, int]) -> None:
    assert shortest_edge_size(size, short, longest) == expected


def test_short_sides_are_all_drawn_and_the_long_side_is_limited() -> None:
    generator, step = rng(), ResizeShortestEdge((20, 30, 45), 1000)
    assert {step(rectangle(), generator).size[0] for _ in range(40)} == {20, 30, 45}
    assert ResizeShortestEdge((100,), 150)(Scene(np.zeros((50, 100, 3), np.uint8)), rng()).size == (75, 150)


def test_labels_take_the_nearest_corner_and_ids_the_nearest_centre() -> None:
    import torch

    values = np.repeat(np.arange(333, dtype=np.int32)[:, None], 3, axis=1)
    picture = Scene(np.zeros((333, 3, 3), dtype=np.uint8), {"label": values, "segments": values})
    result = ResizeShortestEdge((4,), 468)(picture, rng())
    published = torch.nn.functional.interpolate(torch.from_numpy(values).double()[None, None], size=result.size)
    assert np.array_equal(result.maps["label"], published[0, 0].numpy())
    assert np.array_equal(
        result.maps["segments"][:, 0], np.floor((np.arange(len(result.image)) + 0.5) * 333 / len(result.image))
    )


def test_large_scale_jitter_scales_crops_and_pads_to_one_size() -> None:
    generator, shares = rng(), []
    for _ in range(60):
        result = LargeScaleJitter(64)(rectangle(), generator)
        assert result.size == (64, 64)
        shares.append(float((result.image[..., 0] == 128).mean()))
    assert max(shares) > 0.9  # factor near 0.1: almost all padding
    assert min(shares) < 0.05  # factor near 2: no padding


def test_large_scale_jitter_places_both_axes_by_one_number() -> None:
    generator = Recorder(1.0, 0.5)  # factor 2, middle
    image, ids = np.zeros((40, 60, 3), dtype=np.uint8), np.arange(2400, dtype=np.int32).reshape(40, 60)
    result = LargeScaleJitter(50)(Scene(image, {"segments": ids, "label": ids}), generator)  # type: ignore[arg-type]
    # 40 x 60 fits into 100 x 100 at 5 / 3: 67 x 100; offsets round(17 * .5) = 8 and round(50 * .5) = 25.
    row, column = divmod(int(result.maps["segments"][0, 0]), 60)
    assert (row, column) == (int(8.5 * 40 / 67), int(25.5 * 60 / 100))
    expected = resized(Scene(image, {"label": ids}), (67, 100), DETECTRON2).maps["label"][8:58, 25:75]
    assert np.array_equal(result.maps["label"], expected)
    assert generator.values == []


def test_crop_is_the_whole_side_of_small_images_and_reaches_every_place_of_large_ones() -> None:
    assert RandomCrop((100, 20))(rectangle(), rng()).size == (30, 20)
    numbers = np.arange(4 * 5, dtype=np.int32).reshape(4, 5)
    picture, generator = Scene(np.zeros((4, 5, 3), np.uint8), {"segments": numbers}), rng()
    corners = [int(RandomCrop((3, 2))(picture, generator).maps["segments"][0, 0]) for _ in range(100)]
    assert set(corners) == {0, 1, 2, 3, 5, 6, 7, 8}


def test_limit_on_one_class_draws_again_until_two_are_balanced() -> None:
    generator, step = rng(), RandomCrop((10, 10), category_share=0.75)

    def largest(picture: Scene) -> int:
        return int(np.bincount(picture.maps["label"].ravel(), minlength=2).max())

    limited = sum(largest(step(rectangle(), generator)) < 75 for _ in range(50))
    assert limited > sum(largest(RandomCrop((10, 10))(rectangle(), generator)) < 75 for _ in range(50))
    assert limited > 25


def test_ignored_pixels_do_not_count_for_the_limit_on_one_class() -> None:
    picture = rectangle()
    picture.maps["label"][picture.maps["label"] == 0] = IGNORE
    generator = Recorder(*[0.25, 0.5] * 10)  # half of the window from 5, 20 on is 255
    RandomCrop((10, 10), category_share=0.75)(picture, generator)  # type: ignore[arg-type]
    assert generator.values == [], "one class beside 255 is still one class: ten draws"


def test_range_crop_lies_between_its_limits() -> None:
    generator = rng()
    sizes = [RandomRangeCrop(20, 40)(rectangle(), generator).size for _ in range(50)]
    assert {h for h, _ in sizes} == set(range(20, 31))
    assert min(w for _, w in sizes) >= 20
    assert max(w for _, w in sizes) <= 40


def test_crop_and_pad_keep_the_size_and_fill_what_is_missing_with_grey_and_ignored() -> None:
    cut = RandomCrop((25, 40))(Scene(np.zeros((30, 20, 3), np.uint8), {"label": np.ones((30, 20), np.uint8)}), rng())
    assert cut.size == (25, 20)
    result = Pad((25, 40))(cut)
    assert result.image.shape == (25, 40, 3)
    assert (result.image[:, 20:] == 128).all()
    assert (result.maps["label"][:, 20:] == IGNORE).all()
    assert (result.maps["label"][:, :20] == 1).all()


def test_one_of_two_draws_its_coin_first() -> None:
    step = OneOfTwo(RandomFlip(1.0), RandomScale(2.0, 2.0))
    assert np.array_equal(step(scene(), Recorder(0.6, 0.0)).image, IMAGE[:, ::-1])  # type: ignore[arg-type]
    assert step(scene(), Recorder(0.5, 0.0)).size == (74, 106)  # type: ignore[arg-type]


def test_what_is_not_said_of_a_step_is_as_published() -> None:
    assert LargeScaleJitter(64) == LargeScaleJitter(64, least=0.1, most=2.0)
    assert RandomRotate() == RandomRotate(degrees=10.0, p=0.5)
    assert ObjectCrop((5, 6)) == ObjectCrop((5, 6), keep=0.85, tries=31, classes=())
    assert RandomCrop((5, 6)) == RandomCrop((5, 6), category_share=1.0)
    assert RandomFlip() == RandomFlip(0.5)
    assert Letterbox((8, 8)) == Letterbox((8, 8), multiple=8)
    assert Resize((3, 4)) == Resize((3, 4), PANET)
    assert ResizeShortestEdge((3,), 9) == ResizeShortestEdge((3,), 9, DETECTRON2)
