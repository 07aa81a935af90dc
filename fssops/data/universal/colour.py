"""SSD's colour jitter as detectron2 does it: in HSV of 8 bits with OpenCV's rounding, cut to bytes after every step.

Source: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, by way of detectron2's ``ColorAugSSDTransform``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fssops.data.universal.geometry import Scene

_STEPS = np.arange(256)
_SATURATION = np.rint(np.divide(255 << 12, _STEPS, out=np.zeros(256), where=_STEPS > 0)).astype(np.int32)
_HUE = np.rint(np.divide(180 << 12, 6.0 * _STEPS, out=np.zeros(256), where=_STEPS > 0)).astype(np.int32)
_SECTORS = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])
"""Which of (v, p, q, t) is red, green and blue in each sixth of the hue circle."""


def rgb_to_hsv(image: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3] -> uint8 hue 0..179, saturation and value 0..255."""
    red, green, blue = (image[..., c].astype(np.int32) for c in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    saturation = (spread * _SATURATION[value] + (1 << 11)) >> 12
    hue = np.where(
        value == red,
        green - blue,
        np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = (hue * _HUE[spread] + (1 << 11)) >> 12
    hue = np.where(hue < 0, hue + 180, hue)
    return np.stack([hue, saturation, value], axis=-1).astype(np.uint8)


def hsv_to_rgb(image: np.ndarray) -> np.ndarray:
    """Undo :func:`rgb_to_hsv`, rounded half to even."""
    one = np.float32(1.0)
    hue = image[..., 0].astype(np.float32) * np.float32(6.0 / 180.0)
    saturation, value = (image[..., c].astype(np.float32) * np.float32(1.0 / 255.0) for c in (1, 2))
    sector = np.floor(hue).astype(np.intp)
    part = hue - sector.astype(np.float32)
    sector %= 6
    tones = np.stack(
        [
            value,
            value * (one - saturation),
            value * (one - saturation * part),
            value * (one - saturation * (one - part)),
        ],
        axis=-1,
    )
    rgb = np.take_along_axis(tones, _SECTORS[sector], axis=-1)
    return np.asarray(np.rint(rgb * np.float32(255.0)).clip(0, 255), dtype=np.uint8)


def _scaled(values: np.ndarray, factor: float = 1.0, offset: float = 0.0) -> np.ndarray:
    moved = values.astype(np.float32) * np.float32(factor) + np.float32(offset)
    return np.asarray(moved.clip(0, 255), dtype=np.uint8)


@dataclass(frozen=True)
class ColourJitter:
    """Brightness, then contrast, saturation and hue in one of two orders, each with probability one half.

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
