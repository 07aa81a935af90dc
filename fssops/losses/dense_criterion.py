"""MaskFormer's criterion: masks are compared at every pixel, in the matcher at stride 4, in the loss at full size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fssops.losses.dense_mask_loss import dense_mask_cost, dense_mask_loss
from fssops.losses.mask_criterion import Matches, SetCriterion, assign_by_head, matched_mask_logits
from fssops.losses.matcher import class_cost
from fssops.structures import MaskPredictions, MaskTargets, StepShare


class DenseSetCriterion(SetCriterion):
    """Cross-entropy on classes; focal and dice loss over all pixels of the matched masks. Images only (T = 1)."""

    def forward(
        self, predictions: MaskPredictions, targets: Sequence[MaskTargets], share: StepShare | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses of all heads; their sum is the training loss.

        Args:
            predictions: of a model in training mode.
            targets: one an image; an image may have none.
            share: set where the batch is a part of a step.
        """
        self.check_targets(predictions, targets)
        matches = self.match(predictions, targets)
        divisor = self.masks_divisor(targets, share, predictions.class_logits.device)
        classes = self.class_losses(predictions.class_logits, matches, targets, share)
        focal, dice = self.mask_losses(predictions, matches, targets)
        return self.named(classes, focal / divisor, dice / divisor)

    @torch.no_grad()
    def match(self, predictions: MaskPredictions, targets: Sequence[MaskTargets]) -> Matches:
        """Hungarian matching of every head and image, in float32 whatever autocast says."""
        with torch.autocast(predictions.class_logits.device.type, enabled=False):
            small = [self.targets_at_stride(predictions, target) for target in targets]
            costs = [
                [self.matching_cost(predictions, head, n, target, small[n]) for n, target in enumerate(targets)]
                for head in range(len(predictions.class_logits))
            ]
        return assign_by_head(costs, predictions)

    def targets_at_stride(self, predictions: MaskPredictions, target: MaskTargets) -> Tensor:
        """Targets [G, h * w] float at the size of the mask features: padded, then nearest neighbours."""
        height, width = predictions.padded_size
        masks = target.masks
        padded = F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1])).float()
        if len(padded) == 0:
            return padded.new_zeros((0, predictions.mask_features[0, 0, 0].numel()))
        return F.interpolate(padded[:, None], size=predictions.mask_features.shape[-2:], mode="nearest").flatten(1)

    @torch.no_grad()
    def matching_cost(
        self, predictions: MaskPredictions, head: int, image: int, target: MaskTargets, small: Tensor
    ) -> Tensor:
        """Cost [Q, G] of one head and image; ``small`` of :meth:`targets_at_stride`."""
        logits = predictions.mask_logits(image, head).float().flatten(1)
        focal, dice = dense_mask_cost(logits, small)
        classes = class_cost(predictions.class_logits[head, image], target.labels)
        return self.weights.mask * focal + self.weights.classes * classes + self.weights.dice * dice

    def mask_losses(
        self, predictions: MaskPredictions, matches: Matches, targets: Sequence[MaskTargets]
    ) -> tuple[Tensor, Tensor]:
        """Focal and dice of the matched masks, summed over them: two [heads].

        Where nothing is matched both are zeros that still reach every parameter behind the masks.
        """
        heads = len(matches)
        nothing = (predictions.mask_embeddings.sum() + predictions.mask_features.sum()) * 0.0
        focal, dice = nothing.expand(heads), nothing.expand(heads)
        for image, (target, logits) in enumerate(zip(targets, matched_mask_logits(predictions, matches), strict=True)):
            count = logits.shape[1]
            if count == 0:
                continue
            matched = torch.cat([of_head[image].targets for of_head in matches])
            image_logits = logits[:, :, 0].flatten(0, 1).float()
            image_focal, image_dice = dense_mask_loss(image_logits, target.masks[matched], predictions.padded_size)
            focal = focal + image_focal.view(heads, count).sum(1)
            dice = dice + image_dice.view(heads, count).sum(1)
        return focal, dice
