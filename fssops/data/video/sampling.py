"""Which frames of a video make a training clip."""

from __future__ import annotations

import numpy as np


def sampled_frames(total: int, count: int, reach: int, rng: np.random.Generator) -> list[int]:
    """Draw the frames of a clip as Mask2Former for video does, in temporal order.

    One frame is drawn evenly from the video; the others, with replacement, from the frames at most ``reach`` before or
    behind it, itself left out. A video of one frame gives that frame ``count`` times (the published code fails there).

    Args:
        total: frames of the video, at least 1.
        count: frames of the clip, at least 1.
        reach: greatest distance from the first drawn.
        rng: where random choices come from.

    Raises:
        ValueError: a number is too small.

    Source: facebookresearch/Mask2Former, YTVISDatasetMapper.
    """
    for name, value, least in (("total", total, 1), ("count", count, 1), ("reach", reach, 1)):
        if value < least:
            raise ValueError(f"sampled_frames: {name} must be at least {least}, got {value}")
    first = int(rng.integers(total))
    near = [index for index in range(max(0, first - reach), min(total, first + reach + 1)) if index != first] or [first]
    others = rng.choice(near, count - 1) if count > 1 else np.empty(0, dtype=np.int64)
    return sorted([first, *(int(index) for index in others)])
