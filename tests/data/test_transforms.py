"""Geometry of images and maps together, and what 255 does in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fssops.data import transforms
from fssops.data.transforms import Sample

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)
LABEL = RNG.integers(0, 4, (37, 53)).astype(np.uint8)


def sample() -> Sample:
    return Sample(IMAGE.copy(), {"label": LABEL.copy()})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_resize_is_pillows_bilinear_and_nearest_whatever_the_aspect() -> None:
    for size in ((20, 20), (64, 80), (37, 20)):
        result = transforms.Resize(size)(sample(), rng())
        expected = Image.fromarray(IMAGE).resize(size[::-1], Image.Resampling.BILINEAR)
        labels = Image.fromarray(LABEL).resize(size[::-1], Image.Resampling.NEAREST)
        assert (result.image == np.asarray(expected)).all()
        assert (result.maps["label"] == np.asarray(labels)).all()


def test_nearest_resize_keeps_numbers_that_do_not_fit_a_byte() -> None:
    wide = np.array([[1000, 70000]], dtype=np.int32)
    assert transforms.resize_map(wide, (2, 4)).tolist() == [[1000, 1000, 70000, 70000]] * 2


def test_flip_turns_image_and_every_map_or_neither() -> None:
    both = Sample(IMAGE, {"label": LABEL, "instance": LABEL.astype(np.int32)})
    seen = set()
    for seed in range(20):
        result = transforms.HorizontalFlip()(both, rng(seed))
        turned = (result.image == IMAGE[:, ::-1]).all()
        assert turned or (result.image == IMAGE).all()
        for key in ("label", "instance"):
            assert (result.maps[key] == (both.maps[key][:, ::-1] if turned else both.maps[key])).all()
        seen.add(bool(turned))
    assert seen == {True, False}


def test_normalise_subtracts_the_mean_and_divides_by_the_deviation() -> None:
    expected = (IMAGE.astype(np.float64) / 255 - transforms.MEAN) / transforms.STD
    result = transforms.normalise(IMAGE)
    assert result.dtype == torch.float32
    assert np.abs(result.numpy().transpose(1, 2, 0) - expected).max() < 1e-6
    assert (transforms.denormalise(result) == IMAGE).all()


def test_blur_is_the_binomial_kernel_with_mirrored_borders() -> None:
    result = transforms.GaussianBlur(p=1.0)(sample(), rng()).image
    kernel = np.array([1, 4, 6, 4, 1]) / 16.0
    padded = np.pad(IMAGE.astype(np.float64), [(2, 2), (2, 2), (0, 0)], mode="reflect")
    expected = sum(kernel[i] * kernel[j] * padded[i : i + 37, j : j + 53] for i in range(5) for j in range(5))
    assert np.abs(result - expected).max() < 1e-3
    assert (transforms.GaussianBlur(p=1.0)(sample(), rng()).maps["label"] == LABEL).all()


def test_rotation_fills_labels_with_255_and_images_with_the_mean() -> None:
    flat = Sample(np.full((60, 60, 3), 255, dtype=np.uint8), {"label": np.ones((60, 60), np.uint8)})
    results = [transforms.RandomRotate(degrees=10, p=1.0)(flat, rng(seed)) for seed in range(10)]
    outside = [r for r in results if r.maps["label"][0, 0] == 255]
    assert len(outside) >= 5
    for result in results:
        assert set(np.unique(result.maps["label"])) <= {1, 255}
        assert result.maps["label"][30, 30] == 1
        assert np.abs(result.image[30, 30] - 255).max() < 1e-3
    for result in outside:
        assert np.abs(result.image[0, 0] - 255 * np.array(transforms.MEAN)).max() < 1e-3


def test_scale_keeps_the_aspect_and_stays_in_its_range() -> None:
    for seed in range(10):
        height, width = transforms.RandomScale(0.8, 1.25)(sample(), rng(seed)).size
        assert 0.8 * 37 - 1 <= height <= 1.25 * 37 + 1
        assert abs(height / 37 - width / 53) < 1.0 / 37


def test_crop_pads_small_images_around_the_centre() -> None:
    result = transforms.RandomCrop((50, 53))(sample(), rng())
    assert result.size == (50, 53)
    assert (result.maps["label"][6:43] == LABEL).all()
    assert (result.maps["label"][:6] == 255).all()
    assert (result.maps["label"][43:] == 255).all()
    assert np.abs(result.image[0] - 255 * np.array(transforms.MEAN)).max() < 1e-3


def test_crop_is_drawn_again_until_it_keeps_the_object() -> None:
    label = np.zeros((100, 100), dtype=np.uint8)
    label[70:80, 70:80] = 3
    label[0, :] = 255
    picture = Sample(np.zeros((100, 100, 3), dtype=np.uint8), {"label": label})
    kept = [int((transforms.RandomCrop((60, 60))(picture, rng(s)).maps["label"] == 3).sum()) for s in range(40)]
    assert min(kept) >= 85
    blind = [
        int((transforms.RandomCrop((60, 60), tries=0)(picture, rng(s)).maps["label"] == 3).sum()) for s in range(40)
    ]
    assert min(blind) < 85


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
    picture = Sample(np.full((*size, 3), 200, dtype=np.uint8), {"label": np.ones(size, np.uint8)})
    result = transforms.Letterbox((473, 473))(picture, rng())
    assert result.size == (473, 473)
    assert (result.maps["label"][: inner[0], : inner[1]] == 1).all()
    assert (result.maps["label"] == 255).sum() == 473 * 473 - inner[0] * inner[1]
    assert (result.image[inner[0] :] == 0).all()
    assert np.abs(result.image[: inner[0], : inner[1]] - 200).max() < 1e-3


@pytest.mark.parametrize("name", transforms.AUGMENTATIONS)
def test_named_augmentation_gives_the_asked_size_and_repeats_with_its_generator(name: str) -> None:
    pipeline = transforms.pipeline((48, 64), name)
    a, b, c = (pipeline(sample(), rng(s)) for s in (1, 1, 2))
    assert a.size == (48, 64) == a.maps["label"].shape
    assert (a.image == b.image).all()
    assert (a.maps["label"] == b.maps["label"]).all()
    assert set(np.unique(a.maps["label"])) <= {0, 1, 2, 3, 255}
    if name.startswith("msanet"):
        assert not np.array_equal(a.image, c.image)


@pytest.mark.parametrize("name", list(transforms.AUGMENTATIONS))
def test_image_and_label_stay_lined_up(name: str) -> None:
    """The picture shows its own label as brightness: after any transform, bright pixels are where the label is."""
    label = np.zeros((120, 160), dtype=np.uint8)
    label[30:90, 40:110] = 1
    picture = Sample(np.repeat((label * 255)[..., None], 3, axis=2), {"label": label})
    for seed in range(8):
        result = transforms.pipeline((96, 96), name)(picture, rng(seed))
        known = result.maps["label"] != 255
        bright = result.image[..., 0] > 127
        wrong = (bright != (result.maps["label"] == 1)) & known
        # Only pixels on the outline may differ, by the two ways of resampling.
        assert wrong.sum() <= 0.02 * known.sum()


@pytest.mark.parametrize("size", [(0, 5), (5,), 5, (2.0, 3), (True, 3)])
def test_size_that_is_no_height_and_width_is_an_error(size: object) -> None:
    with pytest.raises(ValueError, match="size must be two positive integers"):
        transforms.pipeline(size)  # type: ignore[arg-type]


def test_unknown_names_are_errors_and_letterbox_is_square() -> None:
    with pytest.raises(
        ValueError,
        match="augment must be one of none, flip, msanet_pascal, msanet_coco, msanet_base, mm_former, got 'x'",
    ):
        transforms.pipeline((8, 8), "x")
    with pytest.raises(ValueError, match="geometry must be one of square, square_by_corners, letterbox, got 'x'"):
        transforms.pipeline((8, 8), "none", "x")
    with pytest.raises(ValueError, match=r"Letterbox: size must be square, got \(8, 9\)"):
        transforms.pipeline((8, 9), "none", "letterbox")
