"""PSPNet on the base classes of a fold: the base learner of BAM and MSANet.

It learns the classes that have many labels, trained first and on its own; the few-shot system then keeps it frozen,
to know what is certainly not the new class, and uses its backbone.

Source: Zhao et al., "Pyramid scene parsing network", CVPR 2017; Lang et al., "Learning what not to segment" (BAM),
CVPR 2022, section 4.2; github AIVResearch/MSANet at ecd5d08 and chunbolang/BAM at c0f935c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssops.models.backbones.build import build_backbone, check_backbone, finest_stride
from fssops.models.checks import Count, Rate, check_images, check_options
from fssops.models.layers.convolution import ConvNorm, Norm
from fssops.models.layers.derived import Conv2d
from fssops.structures import IGNORE, LabelMapBatch

BINS = (1, 2, 3, 6)
"""Sides of the grids that the pyramid pools to."""


@dataclass(frozen=True)
class PSPNetConfig:
    """Options of :class:`PSPNet`; the defaults are the published base learner of Pascal-5i.

    Attributes:
        backbone: any of :mod:`fssops.models.backbones.build`: a ResNet with a deep stem and dilated res4 and res5,
            VGG-16 at stride 16, others at the stride nearest to 8 that they can have. The published ones are vgg16,
            resnet50 and resnet101.
        base_classes: number of classes besides the background: 15 on Pascal-5i, 60 on COCO-20i.
        norm: of the whole network: "batch" trains on one process, "sync" on several, "frozen" does not move.
        backbone_width: channels of the first convolution; 64 is the published network.
        drop_path: of a Swin or vision transformer backbone, in training.
        head_channels: of the classifier; 512 is the published one.
        dropout: probability that a channel is dropped before the last convolution.
    """

    backbone: str = "resnet50"
    base_classes: Count = 15
    norm: Literal["batch", "sync", "frozen"] = "batch"
    backbone_width: Count = 64
    drop_path: Rate = 0.0
    head_channels: Count = 512
    dropout: Rate = 0.1

    def __post_init__(self) -> None:
        check_options(self)
        check_backbone(self)


class PyramidHead(nn.Module):
    """Pyramid pooling and the classifier on top of it.

    The published form concatenates the features with four pooled, upsampled copies and runs a 3x3 convolution over
    all of it. Upsampling and convolution are linear and the pooled maps have 50 pixels in all, so here the
    convolution's half for them runs on those pixels and one small matrix carries the result to every position: the
    same values up to rounding, half the multiplications, and the concatenation is never formed.

    Args:
        in_channels: C of the features.
        classes: background included.
        channels: of the classifier.
        norm: of every convolution but the last.
        dropout: before the last convolution, by channels.
    """

    def __init__(self, in_channels: int, classes: int, channels: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        pooled = in_channels // len(BINS)
        self.pyramid = nn.ModuleList(
            ConvNorm(in_channels, pooled, 1, bias=False, norm=norm, activation=True) for _ in BINS
        )
        self.convolution = ConvNorm(
            in_channels + len(BINS) * pooled, channels, 3, bias=False, norm=norm, activation=True
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Conv2d(channels, classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, classes, h, w] of features [B, C, h, w]."""
        merge, channels = self.convolution, features.shape[1]
        x = F.conv2d(features, merge.weight[:, :channels], merge.bias, padding=1)
        x = x + self._pooled_part(features, merge.weight[:, channels:])
        if merge.norm is not None:
            x = merge.norm(x)  # not folded: the kernel is ten times as large as the activations
        logits: Tensor = self.classifier(self.dropout(F.relu_(x)))
        return logits

    def _pooled_part(self, features: Tensor, weight: Tensor) -> Tensor:
        """What the pooled maps add to the 3x3 convolution: [B, channels, h, w]."""
        height, width = features.shape[-2:]
        parts, spreads = [], []
        start = 0
        for bins, reduce in zip(BINS, self.pyramid, strict=True):
            pooled = reduce(F.adaptive_avg_pool2d(features, bins)).flatten(2)  # [B, c, n]
            kernel = weight[:, start : start + pooled.shape[1]].flatten(2)  # [O, c, 9]
            parts.append(torch.einsum("ock,bcn->bonk", kernel, pooled).flatten(2))
            spreads.append(_spread(bins, height, width, features))
            start += pooled.shape[1]
        spread = torch.cat(spreads)
        added: Tensor = torch.cat(parts, dim=2) @ spread.to(parts[0].dtype)
        return added.view(*added.shape[:2], height, width)


def _spread(bins: int, height: int, width: int, like: Tensor) -> Tensor:
    """[bins * bins * 9, h * w]: how much of a pooled pixel each tap of a 3x3 kernel meets at each position."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    with torch.autocast(like.device.type, enabled=False):
        units = torch.eye(bins * bins, device=like.device, dtype=dtype).view(-1, 1, bins, bins)
        maps = F.interpolate(units, size=(height, width), mode="bilinear", align_corners=True)
        return F.unfold(maps, 3, padding=1).flatten(0, 1)


class PSPNet(nn.Module):
    """Semantic segmentation of a fold's base classes; channel 0 is the background, novel classes included.

    Args:
        config: options.
        taps: maps of the backbone, of which the head reads the last; a few-shot system reads others beside it.
    """

    name = "pspnet"
    class_dependent = ("head.classifier.",)

    def __init__(self, config: PSPNetConfig | None = None, taps: Sequence[str] = ("res5",)) -> None:
        super().__init__()
        self.config = config = config or PSPNetConfig()
        self.backbone = build_backbone(
            config.backbone,
            taps=taps,
            stride=16 if config.backbone == "vgg16" else finest_stride(config.backbone, 8),
            deep_stem=True,
            width=config.backbone_width,
            norm=config.norm,
            drop_path=config.drop_path,
        )
        self.feature = self.backbone.taps[-1]
        self.stride: int = self.backbone.strides[self.feature]
        self.head = PyramidHead(
            self.backbone.channels[self.feature],
            1 + config.base_classes,
            config.head_channels,
            config.norm,
            config.dropout,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 1 + base classes, H, W] of normalised images [B, 3, H, W].

        Raises:
            ValueError: images of another shape, not floating point, or smaller than the stride; a single image in
                training with norm "batch", which has no statistics over the pyramid's one-pixel grid.
        """
        check_images("PSPNet", images, self.stride)
        if self.training and self.config.norm == "batch" and len(images) < 2:
            raise ValueError(f"PSPNet: images must be at least 2 in training with norm 'batch', got {len(images)}")
        features = self.backbone(images.contiguous(memory_format=torch.channels_last))[self.feature]
        size = (images.shape[-2], images.shape[-1])
        logits: Tensor = F.interpolate(self.head(features), size=size, mode="bilinear", align_corners=True)
        return logits

    def losses(self, batch: LabelMapBatch) -> dict[str, Tensor]:
        """{"loss_base"}: cross entropy over the pixels that are not ``IGNORE``; 0 where there is none."""
        counted = None if batch.share is None else batch.share.divisor("pixels")
        return {"loss_base": cross_entropy(self(batch.images), batch.labels, counted)}

    def loss_counts(self, batch: LabelMapBatch) -> dict[str, float]:
        """Pixels that are not ``IGNORE``; see :class:`fssops.models.interface.Counted`."""
        return {"pixels": float((batch.labels != IGNORE).sum())}


def cross_entropy(
    logits: Tensor, labels: Tensor, counted: float | None = None, foreground_weight: float = 1.0
) -> Tensor:
    """Mean cross entropy of logits [B, C, H, W] in float32 over labels [B, H, W] that are not ``IGNORE``.

    ``counted`` replaces their number; pixels of a label other than 0 weigh ``foreground_weight`` in the sum.
    """
    weight = None
    if foreground_weight != 1.0:
        weight = torch.full((logits.shape[1],), foreground_weight, device=logits.device)
        weight[0] = 1.0
    total = F.cross_entropy(logits.float(), labels, weight, ignore_index=IGNORE, reduction="sum")
    return total / ((labels != IGNORE).sum().clamp(min=1) if counted is None else counted)
