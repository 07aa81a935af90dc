"""The potential objects segmenter of MM-Former: N learnt queries that cut an image into class-agnostic proposals.

It is trained first and on its own; the few-shot system keeps it frozen and matches its proposals with the support.

Source: Jiao et al., "Mask matching transformer for few-shot segmentation", NeurIPS 2022, section 3.1, and github
Picsart-AI-Research/Mask-Matching-Transformer at eb474f8; its decoders are Mask2Former's. What ``behaviour`` chooses
here and in :mod:`fssops.models.mm_former` stands in that module's table.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssops.losses import proposals as proposal_losses
from fssops.losses.mask_criterion import LossWeights
from fssops.losses.point_criterion import PointSetCriterion
from fssops.losses.point_sources import ItemPoints, PointSource
from fssops.models.backbones.backbone import STAGES
from fssops.models.backbones.build import build_backbone, finest_stride
from fssops.models.checks import check_images
from fssops.models.layers.image_input import images_a_pass
from fssops.models.layers.singular_values import tune_singular_values
from fssops.models.mm_former.config import MMFormerSegmenterConfig
from fssops.models.pixel_decoders.ms_deform import MSDeformPixelDecoder
from fssops.models.transformer_decoders.masked import MaskedTransformerDecoder
from fssops.structures import IGNORE, MaskPredictions, MaskTargets, ProposalBatch

DIVISOR = 32
"""Images are padded right and below to a multiple of this."""

MAP_STRIDES = dict(zip(STAGES, (4, 8, 8, 8), strict=True))
"""Of the published backbone's maps; those of others are resized to them."""

TUNED_STAGES = ("res3", "res4", "res5")
"""Stages whose singular values are tuned."""


class MMFormerSegmenter(nn.Module):
    """Backbone, deformable-attention pixel decoder and masked-attention decoder; queries name no class.

    Args:
        config: options.
    """

    name = "mm_former_segmenter"

    def __init__(self, config: MMFormerSegmenterConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MMFormerSegmenterConfig()
        self.published = config.behaviour == "published"
        moving = self.published or config.tuning == "all"
        self.backbone = build_backbone(
            config.backbone,
            taps=STAGES,
            stride=finest_stride(config.backbone, 8),
            dilations=(1, 1, (1, 2), (2, 4)),
            deep_stem=True,
            width=config.backbone_width,
            norm="batch" if moving else "frozen",
            drop_path=config.drop_path,
            frozen=config.tuning != "all",
        )
        self.stride: int = self.backbone.strides["res5"]
        if config.tuning == "singular_values":
            tune_singular_values(self.backbone.get_submodule(name) for name in TUNED_STAGES)  # type: ignore[misc]
        self.pixel_decoder = MSDeformPixelDecoder(
            self.backbone.channels,
            channels=config.channels,
            mask_channels=config.channels,
            heads=config.heads,
            layers=config.encoder_layers,
            points=config.sampling_points,
            hidden=config.encoder_hidden,
        )
        self.transformer_decoder = MaskedTransformerDecoder(
            config.channels,
            num_classes=None,
            num_queries=config.num_queries,
            channels=config.channels,
            mask_channels=config.channels,
            heads=config.heads,
            layers=config.decoder_layers,
            hidden=config.decoder_hidden,
        )
        self.criterion = PointSetCriterion(
            None,
            LossWeights(0.0, config.mask_weight, config.dice_weight),
            num_points=config.train_points,
            oversample_ratio=config.oversample_ratio,
            importance_ratio=config.importance_ratio,
        )

    def train(self, mode: bool = True) -> MMFormerSegmenter:
        """As in ``nn.Module``, but the statistics of a frozen backbone stay, unless the behaviour is "published"."""
        super().train(mode)
        if not self.published and self.config.tuning != "all":
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Mask logits [B, N, h, w] at a quarter of the padded size of normalised images [B, 3, H, W]."""
        predictions = self.predict(*self.pixel_inputs(self.features(images)), auxiliary=False)
        return self.mask_logits(predictions)

    @torch.no_grad()
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """The proposals of normalised images [n, 3, H, W], as :meth:`MMFormer.query_features` gives them.

        Returns:
            "proposals" [n, N, h, w] probabilities at stride 4 of the padded images; "size" [n, 2], height and width.
        """
        proposals = torch.cat([self(part).float().sigmoid_() for part in images.split(images_a_pass(images))])
        return {"proposals": proposals, "size": sizes_of(images)}

    @staticmethod
    def full_size(masks: Tensor, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Masks [n, M, h, w] at stride 4 of the padded images, at the images' ``size`` (H, W)."""
        padded = (4 * int(masks.shape[2]), 4 * int(masks.shape[3]))
        full = proposal_losses.upsampled(masks, padded)
        height, width = (int(n) for n in features["size"][0])
        full = full[:, :, :height, :width]
        return full if (height, width) == tuple(size) else proposal_losses.upsampled(full, size)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Maps "res2".."res5" of normalised images [B, 3, H, W], padded with zeros to a multiple of ``DIVISOR``.

        Raises:
            ValueError: images of another shape, not floating point, or smaller than the stride.
        """
        check_images(f"{type(self).__name__}.features", images, self.stride)
        padded = padded_size(images.shape[-2], images.shape[-1])
        images = F.pad(images, (0, padded[1] - images.shape[-1], 0, padded[0] - images.shape[-2]))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.tuning != "none"):
            maps: dict[str, Tensor] = self.backbone(images.contiguous(memory_format=torch.channels_last))
        for name, stride in MAP_STRIDES.items():
            size = (padded[0] // stride, padded[1] // stride)
            if tuple(maps[name].shape[-2:]) != size:
                maps[name] = F.interpolate(maps[name], size=size, mode="bilinear", align_corners=False)
        return maps

    def pixel_inputs(self, maps: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
        """What the pixel decoder reads of the backbone's maps; see :meth:`MSDeformPixelDecoder.project`."""
        if self.config.levels == "pyramid":
            height, width = maps["res3"].shape[-2:]
            shrunk = {}
            for name, factor in (("res4", 2), ("res5", 4)):
                # A map of a few pixels keeps at least one.
                size = (max(height // factor, 1), max(width // factor, 1))
                shrunk[name] = F.interpolate(maps[name], size=size, mode="bilinear", align_corners=self.published)
            maps = {**maps, **shrunk}
        return self.pixel_decoder.project(maps)

    def predict(self, levels: list[Tensor], fine: Tensor, *, auxiliary: bool) -> MaskPredictions:
        """Masks of all queries, in factored form.

        Args:
            levels: of :meth:`pixel_inputs`, [B, C, h_l, w_l] each.
            fine: of :meth:`pixel_inputs`, [B, C, h, w] at stride 4.
            auxiliary: return every head's predictions instead of the last one's only.
        """
        decoded = self.pixel_decoder.decode(levels, fine)
        mask_features = decoded.mask_features[:, None]
        memory = self.transformer_decoder.prepare(decoded.memory, decoded.sizes, mask_features)
        output = self.transformer_decoder(memory, auxiliary=auxiliary)
        size = (4 * int(fine.shape[2]), 4 * int(fine.shape[3]))
        return MaskPredictions(output.class_logits, output.mask_embeddings, mask_features, size)

    @staticmethod
    def mask_logits(predictions: MaskPredictions) -> Tensor:
        """Logits [B, N, h, w] of the final head."""
        features = predictions.mask_features[:, 0]
        flat = predictions.mask_embeddings[-1].to(features.dtype) @ features.flatten(2)
        return flat.view(*flat.shape[:2], *features.shape[2:])

    def losses(self, batch: ProposalBatch, points: PointSource | None = None) -> dict[str, Tensor]:
        """Mask and dice terms of all heads against every region, and a dice term against one class of the image.

        Args:
            batch: images with their regions.
            points: where random points come from; None draws from the default generator of the device.

        Returns:
            "loss_mask", "loss_dice", the same with suffixes "_0".. of the earlier heads, and "loss_object".

        Raises:
            ValueError: labels of another size than the images.
        """
        size = tuple(batch.images.shape[-2:])
        for name, maps in (("labels", batch.labels), ("objects", batch.objects)):
            if tuple(maps.shape[-2:]) != size:
                raise ValueError(
                    f"MMFormerSegmenter.losses: {name} must have the images' size {list(size)}, got "
                    f"{list(maps.shape[-2:])}"
                )
        predictions = self.predict(*self.pixel_inputs(self.features(batch.images)), auxiliary=True)
        targets = [regions(label) for label in batch.labels]
        if points is None and batch.seeds:
            points = ItemPoints.of_targets(batch.images.device, batch.seeds, targets, self.config.num_queries)
        losses: dict[str, Tensor] = self.criterion(predictions, targets, points, share=batch.share)
        losses["loss_object"] = self.config.object_weight * self.object_loss(predictions, batch.objects)
        return losses

    def loss_counts(self, batch: ProposalBatch) -> dict[str, float]:
        """Regions; see :class:`fssops.models.interface.Counted`."""
        return self.criterion.counts([regions(label) for label in batch.labels], self.config.num_queries)

    def object_loss(self, predictions: MaskPredictions, objects: Tensor) -> Tensor:
        """Dice between a class of each image [B, H, W] and the proposal that covers it best, or as published second."""
        masks = self.mask_logits(predictions).float().sigmoid()
        target, valid = object_target(objects, predictions.padded_size, all_count=self.published)
        overlap = proposal_losses.soft_iou(masks.detach(), target, valid)
        best = masks[torch.arange(len(masks), device=masks.device), self.chosen_proposal(overlap)]
        full = proposal_losses.upsampled(best[:, None], predictions.padded_size)[:, 0]
        return proposal_losses.dice_loss(full, target, valid, squash=self.published)

    def chosen_proposal(self, overlap: Tensor) -> Tensor:
        """The query [B] whose mask stands for an object, by overlap [B, N]: the best, or as published the second."""
        rank = min(1, overlap.shape[1] - 1) if self.published else 0
        return overlap.topk(rank + 1, dim=1).indices[:, rank]


def sizes_of(images: Tensor) -> Tensor:
    """Height and width [n, 2] of images [n, 3, H, W]."""
    return torch.tensor([images.shape[-2:]], device=images.device).expand(len(images), -1)


def padded_size(height: int, width: int) -> tuple[int, int]:
    """The size that an image is padded to."""
    return -(-height // DIVISOR) * DIVISOR, -(-width // DIVISOR) * DIVISOR


def object_target(objects: Tensor, size: tuple[int, int], *, all_count: bool) -> tuple[Tensor, Tensor | None]:
    """The object of each image as float [B, H, W] at the padded size, and which pixels count (None: all).

    Args:
        objects: [B, H', W'] int64, 1 on the object, ``IGNORE``.
        size: padded (H, W); what was added does not count.
        all_count: take ``IGNORE`` for background, as published.
    """
    padding = (0, size[1] - objects.shape[2], 0, size[0] - objects.shape[1])
    padded = F.pad(objects, padding, value=IGNORE)
    target = (padded == 1).float()
    return target, None if all_count else (padded != IGNORE).float()


def regions(label: Tensor) -> MaskTargets:
    """One mask for each distinct value of a label map [H, W] but ``IGNORE``, by ascending value."""
    values = label.unique()
    values = values[values != IGNORE]
    return MaskTargets(labels=torch.zeros_like(values), masks=label[None] == values[:, None, None])
