"""Backbones of the MaskFormer family by name."""

from __future__ import annotations

from typing import Literal

from fssops.models.backbones.resnet import ResNet
from fssops.models.backbones.swin import SWIN, SwinTransformer
from fssops.models.layers.convolution import Norm

BackboneName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet50_deeplab",
    "resnet101_deeplab",
    "swin_tiny",
    "swin_small",
    "swin_base",
    "swin_large",
]

STAGE_NAMES = ("res2", "res3", "res4", "res5")


def build_backbone(name: BackboneName, norm: Norm = "frozen", drop_path: float = 0.3) -> ResNet | SwinTransformer:
    """A backbone that returns "res2".."res5" at strides 4, 8, 16, 32 and has a dict ``channels`` of their widths.

    Args:
        name: "resnet{18,34,50,101}" with torchvision's 7x7 stem, the same with ``_deeplab`` for the three-convolution
            stem and multi-grid dilations of MaskFormer's R101c, or "swin_{tiny,small,base,large}".
        norm: normalisation of a ResNet; "frozen", as published, keeps its statistics and affine part fixed.
        drop_path: rate of a Swin's last block; of the others in proportion to depth.

    Raises:
        ValueError: the name is unknown.
    """
    if name.startswith("resnet"):
        depth, _, form = name.removeprefix("resnet").partition("_")
        if depth in ("18", "34", "50", "101") and form in ("", "deeplab"):
            deeplab = form == "deeplab"
            dilations: tuple[int | tuple[int, ...], ...] = (1, 1, 1, (1, 2, 4) if deeplab else 1)
            return ResNet(int(depth), norm=norm, deep_stem=deeplab, dilations=dilations, out_features=STAGE_NAMES)
    if name in SWIN:
        return SwinTransformer(SWIN[name], drop_path=drop_path)
    raise ValueError(
        f"build_backbone: name must be resnet18, resnet34, resnet50, resnet101, resnet50_deeplab, resnet101_deeplab,"
        f" {', '.join(SWIN)}, got {name!r}"
    )
