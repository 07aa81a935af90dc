"""Options of MSANet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fssops.models.backbones.build import check_backbone
from fssops.models.checks import Count, Natural, Positive, check_options
from fssops.models.pspnet import PSPNetConfig


@dataclass(frozen=True)
class MSANetConfig:
    """Options of :class:`MSANet`; the defaults are the published network on Pascal-5i, 1-shot.

    Attributes:
        backbone: as of :class:`fssops.models.pspnet.PSPNet`; which of its layers are compared says
            :class:`fssops.models.msanet.frozen_backbone.FrozenBackbone`.
        base_classes: of the base learner, background not counted: 15 on Pascal-5i, 60 on COCO-20i.
        shots: number of supports that the learnt shot weights are for; 1 has none. Other numbers of supports are
            weighted equally.
        shot_hidden: hidden width of the shot weights; 0 is one linear map, as in BAM's first form.
        behaviour: "sound" or "published", see the table of :mod:`fssops.models.msanet`.
        backbone_width: channels of the first convolution; 64 is the published network.
        channels: of the embeddings and the decoder.
        similarity_channels: that the similarity maps are reduced to.
        head_channels: of the base learner's classifier.
        foreground_weight: of foreground pixels in the cross entropies of ensemble and meta learner, where background
            weighs 1. Published is 1; where objects are small and features weak, background everywhere is the best
            guess under it.
    """

    backbone: str = "resnet50"
    base_classes: Count = 15
    shots: Count = 1
    shot_hidden: Natural = 2
    behaviour: Literal["sound", "published"] = "sound"
    backbone_width: Count = 64
    channels: Count = 256
    similarity_channels: Count = 64
    head_channels: Count = 512
    foreground_weight: Positive = 1.0

    def __post_init__(self) -> None:
        check_options(self)
        check_backbone(self)

    def base_learner(self) -> PSPNetConfig:
        """The options of the first stage, which comes frozen."""
        return PSPNetConfig(
            backbone=self.backbone,
            base_classes=self.base_classes,
            norm="frozen",
            backbone_width=self.backbone_width,
            head_channels=self.head_channels,
        )
