"""The per-pixel classification baselines of the MaskFormer paper, on the same backbones and pixel decoders.

Source: Cheng et al., "Per-pixel classification is not all you need", NeurIPS 2021, section 4, and its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fssops.models.backbones.build import check_backbone
from fssops.models.backbones.feature_pyramid import build_multi_scale, multi_scale_maps
from fssops.models.checks import Count, Natural, Rate, check_options, check_width
from fssops.models.layers.convolution import Norm
from fssops.models.layers.derived import Conv2d
from fssops.models.layers.image_input import ImageInput
from fssops.models.pixel_decoders.features import STRIDES
from fssops.models.pixel_decoders.fpn import FPNPixelDecoder
from fssops.models.transformer_decoders.standard import StandardTransformerDecoder
from fssops.models.universal import postprocessing
from fssops.structures import IGNORE, ImageBatch, SegmentationResult, SemanticResult, require_numbers


@dataclass(frozen=True)
class PerPixelBaselineConfig:
    """Options of :class:`PerPixelBaseline`.

    Attributes:
        backbone: any with maps at strides 4, 8, 16 and 32 or of one scale, of :mod:`fssops.models.backbones.build`.
        backbone_norm: normalisation of a ResNet backbone.
        drop_path: of a Swin or vision transformer backbone.
        num_classes: C.
        plus: PerPixelBaseline+: MaskFormer's transformer decoder with one query a class gives the logits, and every
            decoder layer is supervised.
        ignore: label of pixels that do not train.
        channels: width of pixel decoder and queries.
        mask_channels: width of the per-pixel embeddings.
        heads: attention heads (plus).
        decoder_layers: of the transformer decoder (plus).
        hidden: width of its feed-forward sub-layers.
        dropout: of it, in training.
        size_divisor: images of a batch are padded to a common multiple of this.
    """

    backbone: str = "resnet50"
    backbone_norm: Norm = "frozen"
    drop_path: Rate = 0.3
    num_classes: Count = 150
    plus: bool = False
    ignore: int = IGNORE
    channels: Count = 256
    mask_channels: Count = 256
    heads: Count = 8
    decoder_layers: Count = 6
    hidden: Count = 2048
    dropout: Rate = 0.1
    size_divisor: Natural = 32

    tasks: ClassVar[tuple[str, ...]] = ("semantic",)
    possible_tasks: ClassVar[tuple[str, ...]] = tasks
    detections: ClassVar[int] = 0
    trains_on_label_maps: ClassVar[bool] = True
    measurable_layers: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_options(self)
        check_backbone(self, *STRIDES)
        check_width(self)
        if 0 <= self.ignore < self.num_classes:
            raise ValueError(
                f"PerPixelBaselineConfig: ignore must not be a class (0..{self.num_classes - 1}), got {self.ignore}"
            )


class PerPixelBaseline(nn.Module):
    """Backbone and FPN; logits from a 1x1 convolution, or from one query a class.

    Args:
        config: options.
    """

    name = "per_pixel_baseline"
    class_dependent = ("classifier.", "transformer_decoder.query_embed.")
    """Names of tensors that a checkpoint with another number of classes leaves at their initial values."""

    def __init__(self, config: PerPixelBaselineConfig) -> None:
        super().__init__()
        self.config = config
        self.image_input = ImageInput(config.size_divisor)
        self.backbone, self.pyramid = build_multi_scale(
            config.backbone, config.channels, norm=config.backbone_norm, drop_path=config.drop_path
        )
        self.pixel_decoder = FPNPixelDecoder(
            (self.pyramid or self.backbone).channels, channels=config.channels, mask_channels=config.mask_channels
        )
        self.classifier: nn.Conv2d | None = None
        self.transformer_decoder: StandardTransformerDecoder | None = None
        if config.plus:
            self.transformer_decoder = StandardTransformerDecoder(
                self.pixel_decoder.memory_channels,
                num_classes=None,
                num_queries=config.num_classes,
                channels=config.channels,
                mask_channels=config.mask_channels,
                heads=config.heads,
                layers=config.decoder_layers,
                hidden=config.hidden,
                dropout=config.dropout,
            )
        else:
            classifier = Conv2d(config.mask_channels, config.num_classes, 1)
            nn.init.kaiming_normal_(classifier.weight, mode="fan_out", nonlinearity="relu")
            if classifier.bias is not None:
                nn.init.zeros_(classifier.bias)
            self.classifier = classifier

    def logits(self, images: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits [B, C, h, w] at stride 4 of normalised, padded images, the final ones last.

        Args:
            images: [B, 3, H, W].
            auxiliary: return those of every decoder layer (plus only).
        """
        features = self.pixel_decoder(multi_scale_maps(self.backbone, self.pyramid, images))
        if self.transformer_decoder is None:
            assert self.classifier is not None
            return [self.classifier(features.mask_features)]
        decoded = self.transformer_decoder(features.memory[0], features.sizes[0], auxiliary=auxiliary)
        flat = features.mask_features.flatten(2)
        size = features.mask_features.shape[-2:]
        return [(head @ flat).unflatten(2, size) for head in decoded.mask_embeddings]

    def forward(self, batch: ImageBatch) -> Tensor:
        """Logits [B, C, H, W] of the padded images at full size."""
        images, _ = self.image_input(batch.images)
        logits = self.logits(images, auxiliary=False)[-1]
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)

    def losses(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Mean cross-entropy over the pixels that are not ignored; ``loss_sem_seg``, with a suffix for inner layers.

        A batch without a single labelled pixel gives zeros.

        Raises:
            ValueError: a target has no label map, or one that does not fit.
        """
        images, _ = self.image_input(batch.images)
        size = (int(images.shape[2]), int(images.shape[3]))
        labels = self._padded_labels(batch, size, images.device)
        labelled = (labels != self.config.ignore).sum().clamp(min=1)
        count = labelled if batch.share is None else batch.share.divisor("pixels")
        logits = self.logits(images, auxiliary=True)
        losses = {}
        for index in [len(logits) - 1, *range(len(logits) - 1)]:
            full = F.interpolate(logits[index].float(), size=size, mode="bilinear", align_corners=False)
            total = F.cross_entropy(full, labels, ignore_index=self.config.ignore, reduction="sum")
            losses["loss_sem_seg" if index == len(logits) - 1 else f"loss_sem_seg_{index}"] = total / count
        return losses

    def loss_counts(self, batch: ImageBatch) -> dict[str, float]:
        """Pixels that are not ignored; see :class:`fssops.models.interface.Counted`."""
        maps = [target.label_map for target in batch.targets or [] if target.label_map is not None]
        return {"pixels": float(sum(int((label_map != self.config.ignore).sum()) for label_map in maps))}

    def _padded_labels(self, batch: ImageBatch, size: tuple[int, int], device: torch.device) -> Tensor:
        targets = batch.targets or []
        if len(targets) != len(batch.images):
            raise ValueError(
                f"PerPixelBaseline.losses: batch.targets must be one an image ({len(batch.images)}), got {len(targets)}"
            )
        labels = torch.full((len(targets), *size), self.config.ignore, dtype=torch.int64, device=device)
        for index, (target, (height, width)) in enumerate(zip(targets, batch.sizes, strict=True)):
            label_map = target.label_map
            if label_map is None or tuple(label_map.shape) != (height, width):
                got = None if label_map is None else list(label_map.shape)
                raise ValueError(
                    f"PerPixelBaseline.losses: targets[{index}].label_map must be {[height, width]}, got {got}"
                )
            wrong = (label_map != self.config.ignore) & ((label_map < 0) | (label_map >= self.config.num_classes))
            if wrong.any():
                raise ValueError(
                    f"PerPixelBaseline.losses: targets[{index}].label_map must hold 0..{self.config.num_classes - 1} or"
                    f" {self.config.ignore}, got {int(label_map[wrong][0])}"
                )
            labels[index, :height, :width] = label_map
        return labels

    @torch.no_grad()
    def segment(self, batch: ImageBatch, tasks: Sequence[str] | None = None) -> list[SegmentationResult]:
        """Semantic segmentation: logits at full size, without padding, resized to the output size.

        Raises:
            ValueError: another task is asked for.
        """
        if tasks is not None and set(tasks) != {"semantic"}:
            raise ValueError(f"PerPixelBaseline.segment: tasks must be semantic, got {', '.join(tasks)}")
        sizes, outputs = batch.sizes, batch.result_sizes
        return [
            SegmentationResult(SemanticResult(postprocessing.crop_and_resize(logits, true, output)))
            for logits, true, output in zip(
                require_numbers(self(batch).float(), f"{type(self).__name__}.segment"), sizes, outputs, strict=True
            )
        ]
