"""MaskFormer: per-pixel classification is not all you need for semantic segmentation.

Source: Cheng et al., NeurIPS 2021, and facebookresearch/MaskFormer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fssops.losses.dense_criterion import DenseSetCriterion
from fssops.losses.mask_criterion import LossWeights
from fssops.models.checks import Count, Natural, NonNegative, Rate
from fssops.models.pixel_decoders.fpn import FPNPixelDecoder
from fssops.models.pixel_decoders.ms_deform import resized_padding
from fssops.models.pixel_decoders.transformer_fpn import TransformerFPNPixelDecoder
from fssops.models.transformer_decoders.standard import StandardTransformerDecoder
from fssops.models.universal import UniversalConfig, UniversalModel
from fssops.structures import MaskPredictions


@dataclass(frozen=True)
class MaskFormerConfig(UniversalConfig):
    """Options of :class:`MaskFormer`; the defaults are ADE20K semantic's.

    Attributes:
        encoder_layers: transformer encoder layers of the pixel decoder; 0 is the plain FPN of the semantic models,
            6 is published for panoptic with ResNets.
        decoder_layers: of the transformer decoder, each with predictions.
        hidden: width of feed-forward sub-layers.
        dropout: of the transformers, in training.
        enforce_input_proj: project the memory even when its channels fit (COCO Swin).
        class_weight: of the class term, in loss and matching cost.
        mask_weight: of the focal term.
        dice_weight: of the dice term.
    """

    num_classes: Count = 150
    encoder_layers: Natural = 0
    decoder_layers: Count = 6
    hidden: Count = 2048
    dropout: Rate = 0.1
    enforce_input_proj: bool = False
    class_weight: NonNegative = 1.0
    mask_weight: NonNegative = 20.0
    dice_weight: NonNegative = 1.0


def build_fpn(in_channels: Mapping[str, int], config: MaskFormerConfig) -> FPNPixelDecoder | TransformerFPNPixelDecoder:
    """The pixel decoder that a configuration asks for."""
    if config.encoder_layers == 0:
        return FPNPixelDecoder(in_channels, channels=config.channels, mask_channels=config.mask_channels)
    return TransformerFPNPixelDecoder(
        in_channels,
        channels=config.channels,
        mask_channels=config.mask_channels,
        heads=config.heads,
        layers=config.encoder_layers,
        hidden=config.hidden,
        dropout=config.dropout,
    )


class MaskFormer(UniversalModel):
    """Backbone, FPN (with or without a transformer encoder), DETR's decoder.

    Args:
        config: options.
    """

    name = "maskformer"
    cut_panoptic_at_half = False
    config: MaskFormerConfig

    def __init__(self, config: MaskFormerConfig) -> None:
        criterion = DenseSetCriterion(
            config.num_classes,
            LossWeights(config.class_weight, config.mask_weight, config.dice_weight),
            no_object_weight=config.no_object_weight,
        )
        super().__init__(config, criterion)
        self.pixel_decoder = build_fpn(self.map_channels, config)
        self.transformer_decoder = StandardTransformerDecoder(
            self.pixel_decoder.memory_channels,
            num_classes=config.num_classes,
            num_queries=config.num_queries,
            channels=config.channels,
            mask_channels=config.mask_channels,
            heads=config.heads,
            layers=config.decoder_layers,
            hidden=config.hidden,
            dropout=config.dropout,
            enforce_input_proj=config.enforce_input_proj,
        )

    def predict(self, images: Tensor, padding: Tensor | None, *, auxiliary: bool) -> MaskPredictions:
        """See :meth:`UniversalModel.predict`."""
        features = self.pixel_decoder(self.maps(images), padding)
        memory, size = features.memory[0], features.sizes[0]
        blocked = None if padding is None else resized_padding(padding, size)
        decoded = self.transformer_decoder(memory, size, blocked, auxiliary=auxiliary)
        padded = (int(images.shape[2]), int(images.shape[3]))
        return MaskPredictions(decoded.class_logits, decoded.mask_embeddings, features.mask_features[:, None], padded)
