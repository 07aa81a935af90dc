"""Mask2Former's criterion: masks are compared at sampled points.

Of all queries' masks only what is looked at is formed: the matcher's logits at its points, and the maps of the
matched queries, from which the loss picks its uncertain points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fssops import ops
from fssops.losses.mask_criterion import (
    LossWeights,
    Matches,
    SetCriterion,
    as_clip,
    assign_by_head,
    head_of,
    matched_mask_logits,
)
from fssops.losses.point_sources import PointSource, RandomPoints
from fssops.structures import MaskPredictions, MaskTargets, StepShare


class PointSetCriterion(SetCriterion):
    """Cross-entropy on classes; binary cross-entropy and dice on P points a mask.

    Args:
        num_classes: C, without "no object"; None where queries name no class.
        weights: of the terms, in loss and matching cost.
        no_object_weight: class weight of "no object".
        num_points: P, for the matcher and for the loss.
        oversample_ratio: candidates for uncertain points, as a multiple of P.
        importance_ratio: share of P that is chosen by uncertainty; the rest is uniform.
    """

    def __init__(
        self,
        num_classes: int | None,
        weights: LossWeights,
        *,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
    ) -> None:
        super().__init__(num_classes, weights, no_object_weight=no_object_weight)
        self.num_points = num_points
        self.oversample_ratio, self.importance_ratio = oversample_ratio, importance_ratio

    def forward(
        self,
        predictions: MaskPredictions,
        targets: Sequence[MaskTargets],
        points: PointSource | None = None,
        *,
        share: StepShare | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses of all heads; their sum is the training loss.

        Args:
            predictions: of a model in training mode.
            targets: one an image; an image may have none.
            points: where random points come from; None draws from the default generator.
            share: set where the batch is a part of a step.
        """
        self.check_targets(predictions, targets)
        points = points or RandomPoints(predictions.class_logits.device)
        matches = self.match(predictions, targets, points)
        divisor = self.masks_divisor(targets, share, predictions.class_logits.device)
        return self.matched_losses(predictions, targets, matches, points, divisor, share=share)

    def matched_losses(
        self,
        predictions: MaskPredictions,
        targets: Sequence[MaskTargets],
        matches: Matches,
        points: PointSource,
        divisor: Tensor,
        part: str = "",
        share: StepShare | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses of all heads under given matches.

        Args:
            predictions: of a model in training mode.
            targets: one an image.
            matches: of every head and image; queries without one should say "no object".
            points: where random points come from.
            divisor: of the mask losses, a scalar.
            part: what the queries are called in the names of the losses, e.g. "_dn".
            share: decides what the class loss divides by; None: the class weights of these queries.
        """
        classes = self.class_losses(predictions.class_logits, matches, targets, share)
        masks, dice = self.mask_losses(predictions, matches, targets, points)
        return self.named(classes, masks / divisor, dice / divisor, part)

    @torch.no_grad()
    def match(self, predictions: MaskPredictions, targets: Sequence[MaskTargets], points: PointSource) -> Matches:
        """Hungarian matching of every head and image, in float32 whatever autocast says."""
        heads = predictions.class_logits.shape[0]
        costs: list[list[Tensor]] = [[] for _ in range(heads)]
        with torch.autocast(predictions.class_logits.device.type, enabled=False):
            for index in [heads - 1, *range(heads - 1)]:
                for image, target in enumerate(targets):
                    drawn = points.matching(head_of(index, heads), image, self.num_points)
                    costs[index].append(self.matching_cost(predictions, index, image, target, drawn))
        return assign_by_head(costs, predictions)

    @torch.no_grad()
    def matching_cost(
        self, predictions: MaskPredictions, head: int, image: int, target: MaskTargets, points: Tensor
    ) -> Tensor:
        """Cost [Q, G] of one head and image at points [P, 2]; all frames of a clip share the points."""
        named = self.num_classes is not None
        return ops.pairwise_mask_cost(
            ops.FactoredMasks(
                predictions.mask_embeddings[head, image].float(), predictions.mask_features[image].float()
            ),
            as_clip(target.masks).flatten(0, 1),
            points,
            class_logits=predictions.class_logits[head, image].float() if named else None,
            labels=target.labels if named else None,
            mask_weight=self.weights.mask,
            class_weight=self.weights.classes,
            dice_weight=self.weights.dice,
            padded_size=predictions.padded_size,
        )

    def mask_losses(
        self, predictions: MaskPredictions, matches: Matches, targets: Sequence[MaskTargets], points: PointSource
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy and dice of the matched masks, summed over them: two [heads].

        Every frame of a matched mask is a mask of its own, with its own points. Where nothing is matched both are
        zeros that still reach every parameter behind the masks, so that distributed training does not wait for them.
        """
        logits = matched_mask_logits(predictions, matches)  # of each image [heads, n, T, h, w]
        places = self.choose_points(logits, points)
        nothing = (predictions.mask_embeddings.sum() + predictions.mask_features.sum()) * 0.0
        heads = len(matches)
        cross_entropy, dice = nothing.expand(heads), nothing.expand(heads)
        for image, (image_logits, target) in enumerate(zip(logits, targets, strict=True)):
            if image_logits.shape[1] == 0:
                continue
            frames = torch.arange(image_logits.shape[2], device=image_logits.device)
            matched = torch.stack([of_head[image].targets for of_head in matches])
            rows = (matched[..., None] * image_logits.shape[2] + frames).flatten()
            image_cross_entropy, image_dice = ops.point_mask_loss(
                image_logits.flatten(0, 2).float(),
                as_clip(target.masks).flatten(0, 1),
                places[image].flatten(0, 1),
                target_index=rows,
                padded_size=predictions.padded_size,
                reduction="none",
            )
            cross_entropy = cross_entropy + image_cross_entropy.view(heads, -1).sum(1)
            dice = dice + image_dice.view(heads, -1).sum(1)
        return cross_entropy, dice

    @torch.no_grad()
    def choose_points(self, logits: Sequence[Tensor], points: PointSource) -> list[Tensor]:
        """Points of the mask loss: the most uncertain of many candidates, then uniform ones.

        Args:
            logits: of each image [heads, n, T, h, w].
            points: where candidates and uniform points come from, for all masks of a head at once.

        Returns:
            [heads, n * T, P, 2] of each image.
        """
        heads, uniform = logits[0].shape[0], self.num_points - int(self.importance_ratio * self.num_points)
        counts = [image_logits.shape[1] * image_logits.shape[2] for image_logits in logits]
        places: list[list[Tensor]] = [[] for _ in logits]
        for index in range(heads):
            head, total = head_of(index, heads), sum(counts)
            candidates = points.oversampled(head, total, int(self.num_points * self.oversample_ratio)).split(counts)
            # Nothing is drawn where every point is chosen by uncertainty, as published.
            fresh = points.remainder(head, total, uniform) if uniform else candidates[0].new_empty((total, 0, 2))
            for image, (image_logits, near, rest) in enumerate(
                zip(logits, candidates, fresh.split(counts), strict=True)
            ):
                if counts[image] == 0:
                    places[image].append(near.new_zeros((0, self.num_points, 2)))
                    continue
                maps = image_logits[index].flatten(0, 1).detach().float()
                places[image].append(ops.uncertain_points(maps, self.num_points, given_draws=(near, rest)))
        return [torch.stack(of_heads) for of_heads in places]
