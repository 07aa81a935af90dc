"""Options of both stages of MM-Former."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from fssops.models.backbones.build import check_backbone
from fssops.models.checks import Count, Rate, Ratio, Share, check_options, check_width


@dataclass(frozen=True)
class MMFormerSegmenterConfig:
    """Options of :class:`MMFormerSegmenter`; the defaults are the published network.

    Attributes:
        backbone: any of :mod:`fssops.models.backbones.build`; resnet50 with a deep stem and dilated res4 and res5 is
            the published one. Maps that are not at strides 4, 8, 8 and 8 as its are resized to them, bilinear.
        backbone_width: channels of the first convolution; 64 is the published network.
        drop_path: of a Swin or vision transformer backbone, in training.
        tuning: what of the backbone is trained: nothing; the singular values of the kernels of res3 to res5 of a ResNet
            (SVF); or everything, for a backbone that starts from random weights.
        levels: maps that the pixel decoder reads: "pyramid" at strides 8, 16 and 32 (plain variant), or all three at
            "stride8" (SVF variant).
        behaviour: "sound" or "published", see :mod:`fssops.models.mm_former`.
        num_queries: N.
        channels: of decoders and mask features.
        heads: attention heads.
        encoder_layers: of the pixel decoder.
        encoder_hidden: width of their feed-forward sub-layers.
        sampling_points: of deformable attention, a head and level.
        decoder_layers: masked-attention layers; there is one prediction head more.
        decoder_hidden: width of their feed-forward sub-layers.
        mask_weight: of binary cross-entropy.
        dice_weight: of the dice term.
        object_weight: of the dice between one proposal and one class of the image.
        train_points: points a mask, in the matcher and in the loss.
        oversample_ratio: candidates for uncertain points, as a multiple of ``train_points``.
        importance_ratio: share of the points chosen by uncertainty.
    """

    backbone: str = "resnet50"
    backbone_width: Count = 64
    drop_path: Rate = 0.0
    tuning: Literal["none", "singular_values", "all"] = "none"
    levels: Literal["pyramid", "stride8"] = "pyramid"
    behaviour: Literal["sound", "published"] = "sound"
    num_queries: Count = 100
    channels: Count = 256
    heads: Count = 8
    encoder_layers: Count = 6
    encoder_hidden: Count = 1024
    sampling_points: Count = 4
    decoder_layers: Count = 9
    decoder_hidden: Count = 2048
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    object_weight: float = 10.0
    train_points: Count = 12544
    oversample_ratio: Ratio = 3.0
    importance_ratio: Share = 0.75

    def __post_init__(self) -> None:
        check_options(self)
        check_backbone(self)
        check_width(self)
        if self.tuning == "singular_values" and not self.backbone.startswith("resnet"):
            raise ValueError(
                f"{type(self).__name__}: tuning must be none or all with a backbone that is no ResNet, got "
                f"'singular_values' with {self.backbone!r}"
            )


@dataclass(frozen=True)
class MMFormerConfig(MMFormerSegmenterConfig):
    """Options of :class:`MMFormer`; the defaults are the published network. ``tuning`` is the first stage's.

    Attributes:
        align_layers: of cross-alignment.
        align_heads: their attention heads.
        align_hidden: width of their feed-forward sub-layers.
        short_side: tokens that the other image is shortened to, along its shorter side.
        matching_hidden: width of the learnt merging.
        merge_weight: of the dice between merge and object.
        rank_weight: of the ranking of similarities.
    """

    align_layers: Count = 2
    align_heads: Count = 4
    align_hidden: Count = 512
    short_side: Count = 15
    matching_hidden: Count = 500
    merge_weight: float = 10.0
    rank_weight: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels % self.align_heads:
            raise ValueError(f"MMFormerConfig: align_heads must divide channels, got {self.align_heads}")

    def segmenter(self) -> MMFormerSegmenterConfig:
        """The options of the first stage."""
        return MMFormerSegmenterConfig(**{f.name: getattr(self, f.name) for f in fields(MMFormerSegmenterConfig)})
