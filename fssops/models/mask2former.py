"""Mask2Former: masked-attention mask transformer for universal image segmentation.

Source: Cheng et al., CVPR 2022, and facebookresearch/Mask2Former.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fssops.losses.mask_criterion import LossWeights
from fssops.losses.point_criterion import PointSetCriterion
from fssops.losses.point_sources import ItemPoints, PointSource
from fssops.models.checks import Count, Natural, NonNegative, Rate, Ratio, Share
from fssops.models.pixel_decoders.features import PixelFeatures
from fssops.models.pixel_decoders.ms_deform import MSDeformPixelDecoder, resized_padding
from fssops.models.transformer_decoders.masked import MaskedTransformerDecoder, Memory
from fssops.models.universal import UniversalConfig, UniversalModel
from fssops.models.universal.config import Task
from fssops.structures import ImageBatch, MaskPredictions, MaskTargets


@dataclass(frozen=True)
class Mask2FormerConfig(UniversalConfig):
    """Options of :class:`Mask2Former`; the defaults are COCO panoptic's.

    Attributes:
        encoder_layers: of the pixel decoder.
        encoder_hidden: width of their feed-forward sub-layers.
        sampling_points: of deformable attention, a head and level.
        dropout: of the pixel decoder, in training.
        recompute: in training, run the encoder layers of the pixel decoder again for the backward pass instead of
            keeping what they computed: some 15 % of a step for about 17 KB a token and layer.
        decoder_layers: masked-attention layers; there is one prediction head more.
        decoder_hidden: width of their feed-forward sub-layers.
        class_weight: of the class term, in loss and matching cost.
        mask_weight: of binary cross-entropy.
        dice_weight: of the dice term.
        train_points: points a mask, in the matcher and in the loss.
        oversample_ratio: candidates for uncertain points, as a multiple of ``train_points``.
        importance_ratio: share of the points chosen by uncertainty.
    """

    encoder_layers: Natural = 6
    encoder_hidden: Count = 1024
    sampling_points: Count = 4
    dropout: Rate = 0.0
    recompute: bool = False
    decoder_layers: Natural = 9
    decoder_hidden: Count = 2048
    class_weight: NonNegative = 2.0
    mask_weight: NonNegative = 5.0
    dice_weight: NonNegative = 5.0
    train_points: Count = 12544
    oversample_ratio: Ratio = 3.0
    importance_ratio: Share = 0.75

    @property
    def measurable_layers(self) -> int:  # type: ignore[override]
        """All of the decoder."""
        return self.decoder_layers

    @property
    def possible_tasks(self) -> tuple[Task, ...]:
        """All: it is one architecture, whatever it was trained for."""
        return ("semantic", "instance", "panoptic")


class Mask2Former(UniversalModel):
    """Backbone, deformable-attention pixel decoder, masked-attention decoder.

    Args:
        config: options.
    """

    name = "mask2former"
    cut_panoptic_at_half = True
    misfits: tuple[tuple[str, str], ...] = (
        (
            r"(^|\.)label_enc\.weight$",
            "these are weights of MP-Former, whose queries carry no position embedding, and Mask2Former's do; build"
            " mp_former for them",
        ),
    )
    """Names (``re.search``) by which weights are told that would nearly fit, and why they do not."""
    criterion_class: type[PointSetCriterion] = PointSetCriterion
    decoder_class: type[MaskedTransformerDecoder] = MaskedTransformerDecoder
    """Matching with losses, and decoder; systems that extend this one have their own."""
    config: Mask2FormerConfig
    criterion: PointSetCriterion

    def __init__(self, config: Mask2FormerConfig) -> None:
        criterion = self.criterion_class(
            config.num_classes,
            LossWeights(config.class_weight, config.mask_weight, config.dice_weight),
            no_object_weight=config.no_object_weight,
            num_points=config.train_points,
            oversample_ratio=config.oversample_ratio,
            importance_ratio=config.importance_ratio,
        )
        super().__init__(config, criterion)
        self.pixel_decoder = MSDeformPixelDecoder(
            self.map_channels,
            channels=config.channels,
            mask_channels=config.mask_channels,
            heads=config.heads,
            layers=config.encoder_layers,
            points=config.sampling_points,
            hidden=config.encoder_hidden,
            dropout=config.dropout,
            recompute=config.recompute,
        )
        self.transformer_decoder = self.decoder_class(
            config.channels,
            num_classes=config.num_classes,
            num_queries=config.num_queries,
            channels=config.channels,
            mask_channels=config.mask_channels,
            heads=config.heads,
            layers=config.decoder_layers,
            hidden=config.decoder_hidden,
        )

    def encode(self, images: Tensor, padding: Tensor | None) -> PixelFeatures:
        """Backbone and pixel decoder: images [N, 3, H, W] do not see each other, be they frames of one clip or not."""
        features: PixelFeatures = self.pixel_decoder(self.maps(images), padding)
        return features

    def memory_of(self, features: PixelFeatures, padding: Tensor | None, frames: int = 1) -> Memory:
        """What the decoder attends to, of images or of clips of ``frames`` frames (the frame is the faster index)."""
        blocked: list[Tensor | None] | None = None
        if padding is not None:
            blocked = [resized_padding(padding, size).reshape(len(padding) // frames, -1) for size in features.sizes]
        mask_features = features.mask_features.unflatten(0, (-1, frames))
        return self.transformer_decoder.prepare(features.memory, features.sizes, mask_features, blocked)

    def predict(self, images: Tensor, padding: Tensor | None, *, auxiliary: bool, frames: int = 1) -> MaskPredictions:
        """See :meth:`UniversalModel.predict`; ``frames`` images in a row are one clip."""
        features = self.encode(images, padding)
        memory = self.memory_of(features, padding, frames)
        decoded = self.transformer_decoder(memory, auxiliary=auxiliary)
        size = (int(images.shape[2]), int(images.shape[3]))
        mask_features = features.mask_features.unflatten(0, (-1, frames))
        return MaskPredictions(decoded.class_logits, decoded.mask_embeddings, mask_features, size)

    def losses(self, batch: ImageBatch, points: PointSource | None = None) -> dict[str, Tensor]:
        """Weighted loss terms of a batch with targets; their sum is the training loss.

        Args:
            batch: images of any sizes, each with its targets; a target may be empty.
            points: where random points come from; None draws those of each image by ``batch.seeds``, and without
                them from the default generator of the device.

        Raises:
            ValueError: the batch has no targets, or they do not fit.
        """
        predictions, targets = self.training_predictions(batch)
        points = points or self.drawn_points(batch, targets, predictions.class_logits.device)
        losses: dict[str, Tensor] = self.criterion(predictions, targets, points, share=batch.share)
        return losses

    def drawn_points(
        self, batch: ImageBatch, targets: Sequence[MaskTargets], device: torch.device
    ) -> PointSource | None:
        """Points by the seeds of the batch's items; None where it has none, which draws from the default generator."""
        return ItemPoints.of_targets(device, batch.seeds, targets, self.config.num_queries) if batch.seeds else None
