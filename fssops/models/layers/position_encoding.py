"""Sine position encodings of feature grids, computed once a size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fssops.models.layers.tensor_cache import TensorCache

TEMPERATURE = 10000.0
"""Base of the geometric progression of wavelengths."""

_EPS = 1e-6


def _waves(positions: Tensor, channels: int) -> Tensor:
    """Interleaved sin (even channel) and cos (odd channel) of positions [n] in radians: [n, channels]."""
    index = torch.arange(channels, dtype=torch.float32)
    wavelengths = TEMPERATURE ** (2 * torch.div(index, 2, rounding_mode="floor") / channels)
    angles = positions[:, None] / wavelengths
    return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=2).flatten(1)


def _axis(length: int) -> Tensor:
    """Positions 1..length scaled so that the last is (almost) 2 pi."""
    steps = torch.arange(1, length + 1, dtype=torch.float32)
    return steps / (steps[-1] + _EPS) * (2 * math.pi)


def sine_position_encoding(
    height: int, width: int, channels: int, frames: int | None = None, device: torch.device | None = None
) -> Tensor:
    """Sine encoding of a grid in row-major order, as DETR's with ``normalize=True``.

    Every axis counts from 1 (no half-pixel offset) and is scaled to (0, 2 pi]. The first half of the channels
    encodes the row, the second the column; of a clip, an encoding of the frame over all channels is added
    (Mask2Former for video). Float32 throughout.

    Args:
        height: rows.
        width: columns.
        channels: C, divisible by 4.
        frames: T, for clips; None for images.
        device: of the result; sines and cosines are those of the CPU all the same.

    Returns:
        [height * width, C], or [T * height * width, C] frame by frame.

    Raises:
        ValueError: if ``channels`` is not divisible by 4.
    """
    if channels % 4:
        raise ValueError(f"sine_position_encoding: channels must be divisible by 4, got {channels}")
    half = channels // 2
    rows = _waves(_axis(height), half).to(device)[:, None].expand(height, width, half)
    columns = _waves(_axis(width), half).to(device)[None].expand(height, width, half)
    grid = torch.cat((rows, columns), dim=2).reshape(height * width, channels)
    return grid if frames is None else _with_frames(grid, frames)


def _with_frames(grid: Tensor, frames: int) -> Tensor:
    """The encoding [T * S, C] of a clip from that [S, C] of an image."""
    channels = grid.shape[1]
    waves = _waves(_axis(frames), channels).to(grid.device)
    return (grid[None] + waves[:, None]).reshape(-1, channels)


class PositionEncodingCache:
    """Encodings of the newest image sizes; those of clips are added up anew, as they are as large as the clip.

    Args:
        channels: C of :func:`sine_position_encoding`.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self._grids = TensorCache()

    def __call__(self, size: tuple[int, int], device: torch.device, frames: int | None = None) -> Tensor:
        """The encoding [T * h * w, C] of a grid ``size`` = (h, w) on ``device``, float32."""
        grid = self._grids.of((size, device), lambda: sine_position_encoding(*size, self.channels, device=device))
        return grid if frames is None else _with_frames(grid, frames)
