"""What a system may rely on in any backbone: named feature maps, and the width and stride of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

STAGES = ("res2", "res3", "res4", "res5")
"""Maps of every backbone with several scales, finest first: at strides 4, 8, 16, 32 unless built for a smaller one.

The names are detectron2's, which the systems of the field inherited; they say nothing of residual blocks.
"""

Watchers = Mapping[str, Callable[[Tensor], None]]
"""Name of a stage to what is called with the output of each of its layers, in order."""


class Backbone(nn.Module):
    """Turns images into feature maps, and returns those it was asked for: its taps.

    Attributes:
        name: family, as the layouts of its weights call it (:mod:`fssops.weights.layouts`).
        taps: names of the maps that ``forward`` returns, finest first.
        channels: width of each map that there is, by name.
        strides: pixels of the image from one cell to the next, by name.
        layer_counts: number of layers of each stage that can be watched, by name; empty where none can. Such a
            backbone's ``forward`` also takes ``watchers``.
    """

    name: str
    taps: tuple[str, ...]
    channels: dict[str, int]
    strides: dict[str, int]
    layer_counts: dict[str, int]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps [B, C, h, w] by tap, of normalised images [B, 3, H, W]."""
        raise NotImplementedError
