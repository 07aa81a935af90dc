"""What a system may rely on in any backbone: named feature maps, width and stride of each, and its layers by depth."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

STAGES = ("res2", "res3", "res4", "res5")
"""Maps of every backbone, shallow to deep: with several scales at strides 4, 8, 16, 32 unless built for a smaller one.

The names are detectron2's, which the systems of the field inherited; they say nothing of residual blocks. A backbone of
one scale has them all at its patch, after a quarter, a half, three quarters and all of its blocks (:func:`quarters`).
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
        layers_by_depth: its submodules in order, as freezing and decaying learning rates count them; empty where they
            are not told apart.
    """

    name: str
    taps: tuple[str, ...]
    channels: dict[str, int]
    strides: dict[str, int]
    layer_counts: dict[str, int]
    layers_by_depth: tuple[str, ...] = ()
    _frozen_layers: int = 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps [B, C, h, w] by tap, of normalised images [B, 3, H, W]."""
        raise NotImplementedError

    def layer_of(self, name: str) -> int:
        """Depth of a parameter: the place of its layer in ``layers_by_depth``; their number for what follows all.

        Args:
            name: as ``named_parameters`` of this module gives it.
        """
        places = (place for place, layer in enumerate(self.layers_by_depth) if name.startswith(f"{layer}."))
        return next(places, len(self.layers_by_depth))

    def freeze(self, layers: int | Literal["all"]) -> None:
        """Stop training of the first layers, or of everything; what is frozen stays in evaluation mode.

        Raises:
            ValueError: there are not so many layers.
        """
        most = len(self.layers_by_depth)
        if layers != "all" and layers > most:
            rule = f"be at most {most} or all" if most else "be 0 or all, since it counts none"
            raise ValueError(f"layers of {self.name} must {rule}, got {layers}")
        self._frozen_layers = most + 1 if layers == "all" else layers
        for name, parameter in self.named_parameters():
            if self.layer_of(name) < self._frozen_layers:
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """As in ``nn.Module``, but what is frozen stays in evaluation mode: neither statistics nor drop path move."""
        super().train(mode and self._frozen_layers <= len(self.layers_by_depth))
        for layer in self.layers_by_depth[: self._frozen_layers]:
            self.get_submodule(layer).eval()
        return self


def quarters(blocks: int) -> dict[str, int]:
    """The block, from 0, that gives each of "res2".."res5" of a backbone of one scale: the last of each quarter."""
    return {stage: -(-blocks * (place + 1) // len(STAGES)) - 1 for place, stage in enumerate(STAGES)}


def padded_to(multiple: int, images: Tensor, where: str) -> Tensor:
    """Images with sides of whole patches: zeros, the mean colour, join right and below, and a warning says so."""
    height, width = images.shape[-2:]
    if height % multiple == 0 and width % multiple == 0:
        return images
    warnings.warn(
        f"{where}: images should have sides that are multiples of the patch, {multiple}, got {height} x {width}; they "
        "are padded on the right and below",
        stacklevel=4,
    )
    return F.pad(images, (0, -width % multiple, 0, -height % multiple))


def without_padding(maps: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Maps of padded images as maps of the images alone, which their cells cover to the edge; bilinear if it differs.

    So systems may resize a map to its image whatever its patch is.

    Args:
        maps: [B, C, h, w] of images of (h * stride, w * stride).
        stride: of the maps.
        size: (H, W) of the images without padding.

    Returns:
        [B, C, ceil(H / stride), ceil(W / stride)].
    """
    cells = [-(-length // stride) for length in size]
    if [stride * count for count in cells] == list(size):
        return maps
    factors = [stride * count / length for count, length in zip(cells, size, strict=True)]
    # One more cell at the edges: the size that follows from the factors is then never too small by rounding.
    grown = F.pad(maps, (0, 1, 0, 1), mode="replicate")
    resized = F.interpolate(grown, scale_factor=factors, mode="bilinear", align_corners=False)
    return resized[..., : cells[0], : cells[1]]
