"""What every pixel decoder returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

STRIDES = (4, 8, 16, 32)
"""Of the four maps of a backbone that every pixel decoder reads, "res2".."res5"."""


@dataclass
class PixelFeatures:
    """Mask features and the tokens that a transformer decoder attends to.

    Attributes:
        mask_features: [B, E, h, w] at stride 4.
        memory: one [B, h_l * w_l, C] a level, row-major, coarsest level first; empty where a decoder offers none.
        sizes: (h_l, w_l) of each level in ``memory``.
    """

    mask_features: Tensor
    memory: list[Tensor]
    sizes: list[tuple[int, int]]
