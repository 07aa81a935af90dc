"""The cases that every implementation of an operator is tested with: CPU, emulated CUDA, CUDA."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PoolingCase:
    """Sizes of one masked average pooling call."""

    name: str
    batch: int
    channels: int
    masks: int
    size: tuple[int, int]
    mask_size: tuple[int, int]
    resize: str
    channels_last: bool = False


MASKED_AVERAGE_POOLING = [
    PoolingCase("same_size", 2, 70, 5, (7, 9), (7, 9), "none"),
    PoolingCase("nearest_down", 2, 33, 3, (7, 9), (29, 31), "nearest"),
    PoolingCase("nearest_up", 1, 8, 2, (9, 11), (4, 3), "nearest"),
    PoolingCase("bilinear_down", 1, 40, 9, (6, 5), (25, 17), "bilinear"),
    PoolingCase("bilinear_up", 2, 5, 2, (11, 13), (4, 6), "bilinear"),
    PoolingCase("bilinear_align_corners", 1, 16, 2, (7, 8), (21, 30), "bilinear_align_corners"),
    PoolingCase("upsample_features", 2, 36, 2, (7, 9), (26, 35), "upsample_features"),
    PoolingCase("upsample_features_down", 1, 6, 2, (9, 9), (4, 5), "upsample_features"),
    PoolingCase("one_pixel", 1, 3, 1, (1, 1), (1, 1), "none"),
    PoolingCase("one_pixel_mask", 1, 3, 2, (5, 4), (1, 1), "bilinear"),
    PoolingCase("one_pixel_features", 1, 3, 2, (1, 1), (6, 7), "upsample_features"),
    PoolingCase("channels_last_same_size", 2, 70, 5, (7, 9), (7, 9), "none", channels_last=True),
    PoolingCase("channels_last_upsample", 2, 36, 2, (7, 9), (26, 35), "upsample_features", channels_last=True),
    PoolingCase("many_masks", 1, 34, 21, (8, 8), (8, 8), "none"),
]
