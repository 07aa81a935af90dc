"""Augmentations of colour: they change the image and leave alone what is said of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fssops.data.augmentation.scene import Scene

_STEPS = np.arange(256)
_SATURATION = np.rint(np.divide(255 << 12, _STEPS, out=np.zeros(256), where=_STEPS > 0)).astype(np.int32)
_HUE = np.rint(np.divide(180 << 12, 6.0 * _STEPS, out=np.zeros(256), where=_STEPS > 0)).astype(np.int32)
_SECTORS = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])
"""Which of (v, p, q, t) is red, green and blue in each sixth of the hue circle."""


def rgb_to_hsv(image: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3] -> uint8 hue 0..179, saturation and value 0..255."""
    # Steps are taken in place: half of the time of the plain expressions went into memory for what lies between.
    red, green, blue = (image[..., c].astype(np.int32) for c in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    hue = red - green
    hue += 4 * spread
    np.copyto(hue, blue - red + 2 * spread, where=value == green)
    np.copyto(hue, green - blue, where=value == red)
    hue *= _HUE.take(spread)
    hue += 1 << 11
    hue >>= 12
    hue += 180 * (hue < 0)
    saturation = spread * _SATURATION.take(value)
    saturation += 1 << 11
    saturation >>= 12
    hsv = np.empty(image.shape, dtype=np.uint8)
    hsv[..., 0], hsv[..., 1], hsv[..., 2] = hue, saturation, value
    return hsv


def _weights_of_hues() -> np.ndarray:
    """What the saturation is multiplied by: float32 [3, 256], of red, green and blue at each hue of 8 bits.

    Every tone of the formula is value * (1 - saturation * weight): v has the weight 0, p 1, q the part of the sixth
    that has gone by, and t the part that is left.
    """
    one = np.float32(1.0)
    hue = _STEPS.astype(np.float32) * np.float32(6.0 / 180.0)
    sector = np.floor(hue)
    part = hue - sector
    weights = np.stack([np.zeros_like(part), np.ones_like(part), part, one - part])
    return np.asarray(weights[_SECTORS[sector.astype(np.intp) % 6].T, _STEPS])


_WEIGHTS = _weights_of_hues()


def hsv_to_rgb(image: np.ndarray) -> np.ndarray:
    """Undo :func:`rgb_to_hsv`, rounded half to even."""
    hue = image[..., 0].astype(np.intp)
    saturation, value = (image[..., c].astype(np.float32) * np.float32(1.0 / 255.0) for c in (1, 2))
    rgb = np.empty(image.shape, dtype=np.uint8)
    for channel, weights in enumerate(_WEIGHTS):
        tone = saturation * weights.take(hue)
        np.subtract(np.float32(1.0), tone, out=tone)
        tone *= value
        tone *= np.float32(255.0)
        rgb[..., channel] = np.rint(tone, out=tone)
    return rgb


def _scaled(values: np.ndarray, factor: float = 1.0, offset: float = 0.0) -> np.ndarray:
    moved = values.astype(np.float32) * np.float32(factor) + np.float32(offset)
    return np.asarray(moved.clip(0, 255), dtype=np.uint8)


@dataclass(frozen=True)
class ColourJitter:
    """SSD's: brightness, then contrast, saturation and hue in one of two orders, each with probability one half.

    As detectron2 does it (``ColorAugSSDTransform``): in HSV of 8 bits with OpenCV's rounding, cut to bytes after every
    step. Source: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016.

    Order of draws: brightness (coin, value), the order's coin, then the coin and value of each step.

    Attributes:
        brightness: largest shift.
        contrast: range of the factor on all channels (no mean is taken out).
        saturation: range of the factor.
        hue: largest shift, of 180; drawn evenly from the integers.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: int = 18

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        image = scene.image
        if rng.integers(2):
            image = _scaled(image, offset=rng.uniform(-self.brightness, self.brightness))
        if rng.integers(2):
            steps = (self._contrast, self._saturation, self._hue)
        else:
            steps = (self._saturation, self._hue, self._contrast)
        for step in steps:
            if rng.integers(2):
                image = step(image, rng)
        return replace(scene, image=image)

    def _contrast(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return _scaled(image, rng.uniform(*self.contrast))

    def _saturation(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        hsv = rgb_to_hsv(image)
        hsv[..., 1] = _scaled(hsv[..., 1], rng.uniform(*self.saturation))
        return hsv_to_rgb(hsv)

    def _hue(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        hsv = rgb_to_hsv(image)
        shift = int(rng.integers(-self.hue, self.hue + 1))
        hsv[..., 0] = (hsv[..., 0].astype(np.int32) + shift) % 180
        return hsv_to_rgb(hsv)


@dataclass(frozen=True)
class GaussianBlur:
    """With probability ``p`` blur with the 5 x 5 binomial kernel [1 4 6 4 1] / 16 an axis (OpenCV, sigma 0)."""

    p: float = 0.5

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        if rng.random() >= self.p:
            return scene
        image = scene.image.astype(np.float32)
        for axis in (0, 1):
            length = image.shape[axis]
            # OpenCV's default border mirrors without repeating the edge pixel; a side of 1 or 2 can only repeat.
            margins = [(2, 2) if a == axis else (0, 0) for a in range(3)]
            wide = np.pad(image, margins, mode="reflect" if length > 2 else "edge")
            parts = [np.take(wide, range(i, i + length), axis=axis) for i in range(5)]
            image = (parts[0] + parts[4] + 4.0 * (parts[1] + parts[3]) + 6.0 * parts[2]) / np.float32(16.0)
        return replace(scene, image=image.astype(np.float32))
