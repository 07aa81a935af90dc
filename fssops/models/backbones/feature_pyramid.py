"""Maps at strides 4, 8, 16 and 32 of any backbone: its own, or a simple feature pyramid on a map of one scale.

Source: Li, Mao, Girshick, He, "Exploring plain vision transformer backbones for object detection" (ViTDet), ECCV 2022,
section 3, and detectron2 ``modeling/backbone/vit.py`` at 0818132. There the map has stride 16; one of another patch is
resized to it first, bilinear.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fssops.models.backbones.backbone import STAGES, Backbone
from fssops.models.backbones.build import build_backbone, row_of
from fssops.models.layers.convolution import Norm
from fssops.models.layers.derived import Conv2d

STRIDE = 16
"""Of the map that the pyramid is made of."""


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps [B, C, h, w], at each position."""

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimpleFeaturePyramid(nn.Module):
    """One map to four: two transposed convolutions, one, none, or a max-pool, then a 1x1 and a 3x3 convolution each.

    Args:
        in_channels: of the map.
        channels: of the maps that are made; 256 is published.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.channels = dict.fromkeys(STAGES, channels)
        half, quarter = in_channels // 2, in_channels // 4
        scaled: tuple[tuple[int, list[nn.Module]], ...] = (
            (
                quarter,
                [
                    nn.ConvTranspose2d(in_channels, half, 2, stride=2),
                    ChannelNorm(half, eps=1e-6),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, stride=2),
                ],
            ),
            (half, [nn.ConvTranspose2d(in_channels, half, 2, stride=2)]),
            (in_channels, []),
            (in_channels, [nn.MaxPool2d(2, ceil_mode=True)]),
        )
        for name, (width, layers) in zip(STAGES, scaled, strict=True):
            layers += [Conv2d(width, channels, 1, bias=False), ChannelNorm(channels, eps=1e-6)]
            layers += [Conv2d(channels, channels, 3, padding=1, bias=False), ChannelNorm(channels, eps=1e-6)]
            self.add_module(name, nn.Sequential(*layers))

    def forward(self, features: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Maps "res2".."res5" [B, C, h, w] at strides 4, 8, 16, 32.

        Args:
            features: [B, Cin, h, w], which covers images of this size.
            size: (H, W) of the images.
        """
        cells = (-(-size[0] // STRIDE), -(-size[1] // STRIDE))
        if tuple(features.shape[-2:]) != cells:
            features = F.interpolate(features, size=cells, mode="bilinear", align_corners=False)
        return {name: self.get_submodule(name)(features) for name in STAGES}


def build_multi_scale(
    name: str, channels: int, *, norm: Norm, drop_path: float
) -> tuple[Backbone, SimpleFeaturePyramid | None]:
    """A backbone and, where it is of one scale, the pyramid of its last map.

    Args:
        name: as :func:`fssops.models.backbones.build.build_backbone` takes it.
        channels: of the pyramid.
        norm: normalisation of the backbone.
        drop_path: of the backbone.
    """
    one_scale = row_of(name).one_scale
    taps = STAGES[-1:] if one_scale else STAGES
    backbone = build_backbone(name, taps=taps, norm=norm, drop_path=drop_path)
    return backbone, SimpleFeaturePyramid(backbone.channels[taps[-1]], channels) if one_scale else None


def multi_scale_maps(backbone: Backbone, pyramid: SimpleFeaturePyramid | None, images: Tensor) -> dict[str, Tensor]:
    """Maps "res2".."res5" of normalised images [B, 3, H, W]."""
    maps: dict[str, Tensor] = backbone(images.contiguous(memory_format=torch.channels_last))
    return maps if pyramid is None else pyramid(maps[STAGES[-1]], (int(images.shape[2]), int(images.shape[3])))
