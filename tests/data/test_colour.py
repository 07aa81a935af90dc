"""Augmentations of colour: their rounding, their draws, and that truth is left alone."""

from __future__ import annotations

import colorsys

import numpy as np

from fssops.data.augmentation.colour import ColourJitter, GaussianBlur, hsv_to_rgb, rgb_to_hsv
from fssops.data.augmentation.scene import Scene

IMAGE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
LABEL = np.random.default_rng(1).integers(0, 4, (37, 53)).astype(np.uint8)


def test_blur_is_the_binomial_kernel_with_mirrored_borders() -> None:
    result = GaussianBlur(p=1.0)(Scene(IMAGE, {"label": LABEL}), np.random.default_rng(0))
    kernel = np.array([1, 4, 6, 4, 1]) / 16.0
    padded = np.pad(IMAGE.astype(np.float64), [(2, 2), (2, 2), (0, 0)], mode="reflect")
    expected = sum(kernel[i] * kernel[j] * padded[i : i + 37, j : j + 53] for i in range(5) for j in range(5))
    assert np.abs(result.image - expected).max() < 1e-3
    assert np.array_equal(result.maps["label"], LABEL)
    flat = GaussianBlur(p=1.0)(Scene(np.full((1, 2, 3), 77, np.uint8)), np.random.default_rng(0)).image
    assert np.abs(flat - 77).max() < 1e-4
    same, rng = Scene(IMAGE), np.random.default_rng(0)
    assert 70 < sum(GaussianBlur()(same, rng) is same for _ in range(200)) < 130


def test_hsv_is_that_of_the_textbook_to_rounding_and_comes_back() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    hsv = rgb_to_hsv(image)
    for y, x in rng.integers(0, 20, (40, 2)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[y, x] / 255.0))
        assert abs(int(hsv[y, x, 0]) - 180 * hue) % 180 <= 0.6
        assert abs(int(hsv[y, x, 1]) - 255 * saturation) <= 0.6
        assert int(hsv[y, x, 2]) == round(255 * value)
    assert np.abs(hsv_to_rgb(hsv).astype(int) - image).max() <= 5  # 180 hues are few
    grey = np.full((2, 2, 3), 77, dtype=np.uint8)
    assert rgb_to_hsv(grey)[0, 0].tolist() == [0, 0, 77]
    assert np.array_equal(hsv_to_rgb(rgb_to_hsv(grey)), grey)


def test_every_hue_is_made_of_the_four_tones_to_the_last_bit() -> None:
    """The formula as OpenCV writes it: v, v (1 - s), v (1 - s f) and v (1 - s (1 - f)) in an order of each sixth."""
    sectors = ["vtp", "qvp", "pvt", "pqv", "tpv", "vpq"]
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    hsv = np.stack(np.meshgrid(np.arange(180, dtype=np.uint8), levels, levels, indexing="ij"), axis=-1)
    one, unit = np.float32(1), np.float32(1.0 / 255.0)
    s, v = (hsv[0, ..., c].astype(np.float32) * unit for c in (1, 2))
    for hue, rgb in enumerate(hsv_to_rgb(hsv)):
        sixths = np.float32(hue) * np.float32(6.0 / 180.0)
        f = sixths - np.floor(sixths)
        tones = {"v": v, "p": v * (one - s), "q": v * (one - s * f), "t": v * (one - s * (one - f))}
        wanted = np.stack([np.rint(tones[tone] * np.float32(255)) for tone in sectors[int(sixths)]], axis=-1)
        assert np.array_equal(rgb, wanted), hue


def test_colour_jitter_truncates_to_bytes_and_leaves_truth_alone() -> None:
    image = np.full((4, 4, 3), 100, dtype=np.uint8)
    image[0] = 250
    label = LABEL[:4, :4]
    results = [ColourJitter()(Scene(image, {"label": label}), np.random.default_rng(s)) for s in range(40)]
    assert sum(np.array_equal(r.image, image) for r in results) < 20
    assert all(r.image.dtype == np.uint8 and np.array_equal(r.maps["label"], label) for r in results)
    only_bright = ColourJitter(contrast=(1, 1), saturation=(1, 1), hue=0)
    seen = {int(only_bright(Scene(image), np.random.default_rng(s)).image[1, 0, 0]) for s in range(60)}
    assert min(seen) >= 68
    assert max(seen) <= 131
    assert len(seen) > 10


class Script:
    """A generator that gives what it is told, whatever is asked, and notes the ranges."""

    def __init__(self, *values: float) -> None:
        self.values, self.asked = list(values), []

    def integers(self, *limits: int) -> int:
        self.asked.append(limits)
        return int(self.values.pop(0))

    def uniform(self, *limits: float) -> float:
        self.asked.append(limits)
        return self.values.pop(0)


def test_colour_jitter_draws_in_the_published_order() -> None:
    """Brightness; a coin for the order; then contrast, saturation, hue, or saturation, hue, contrast."""

    def cut(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32).clip(0, 255).astype(np.uint8)

    def in_hsv(image: np.ndarray, saturation: float, hue: int) -> np.ndarray:
        hsv = rgb_to_hsv(image)
        hsv[..., 1] = cut(hsv[..., 1] * np.float32(saturation))
        hsv = rgb_to_hsv(hsv_to_rgb(hsv))
        hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        return hsv_to_rgb(hsv)

    contrast, saturation, hue = (0.5, 1.5), (0.5, 1.5), (-18, 19)
    first = Script(1, -20.0, 1, 1, 1.25, 1, 0.75, 1, -7)
    result = ColourJitter()(Scene(IMAGE), first).image  # type: ignore[arg-type]
    bright = cut(IMAGE.astype(np.float32) - 20)
    assert np.array_equal(result, in_hsv(cut(bright * np.float32(1.25)), 0.75, -7))
    assert first.asked == [(2,), (-32.0, 32.0), (2,), (2,), contrast, (2,), saturation, (2,), hue]
    second = Script(0, 0, 1, 0.75, 1, -7, 1, 1.25)
    result = ColourJitter()(Scene(IMAGE), second).image  # type: ignore[arg-type]
    assert np.array_equal(result, cut(in_hsv(IMAGE, 0.75, -7) * np.float32(1.25)))
    assert second.asked == [(2,), (2,), (2,), saturation, (2,), hue, (2,), contrast]
    nothing = Script(0, 1, 0, 0, 0)
    assert np.array_equal(ColourJitter()(Scene(IMAGE), nothing).image, IMAGE)  # type: ignore[arg-type]
