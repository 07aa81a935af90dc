"""Mask2Former's criterion: masks are compared at sampled points.

Of all queries' masks only what is looked at is formed: the matcher's logits at its points, and the maps of the
matched queries, from which the loss picks its uncertain points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fssops.losses import operators
from fssops.losses.draws import PointSource, RandomPoints
from fssops.losses.mask_criterion import (
    LossWeights,
    Matches,
    SetCriterion,
    as_clip,
    head_of,
    matched_mask_logits,
)
from fssops.losses.matcher import Match, assign, class_cost
from fssops.losses.num_masks import ReduceNumMasks, mean_over_ranks, num_masks
from fssops.structures import MaskPredictions, MaskTargets


class PointSetCriterion(SetCriterion):
    """Cross-entropy on classes; binary cross-entropy and dice on P points a mask.

    Args:
        num_classes: C, without "no object".
        weights: of the terms, in loss and matching cost.
        no_object_weight: class weight of "no object".
        num_points: P, for the matcher and for the loss.
        oversample_ratio: candidates for uncertain points, as a multiple of P.
        importance_ratio: share of P that is chosen by uncertainty; the rest is uniform.
        reduce_num_masks: mean over processes of the number of targets.
    """

    def __init__(
        self,
        num_classes: int,
        weights: LossWeights,
        *,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
        reduce_num_masks: ReduceNumMasks = mean_over_ranks,
    ) -> None:
        super().__init__(num_classes, weights, no_object_weight=no_object_weight, reduce_num_masks=reduce_num_masks)
        self.num_points = num_points
        self.oversample_ratio, self.importance_ratio = oversample_ratio, importance_ratio

    def forward(
        self, predictions: MaskPredictions, targets: Sequence[MaskTargets], points: PointSource | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses of all heads; their sum is the training loss.

        Args:
            predictions: of a model in training mode.
            targets: one an image; an image may have none.
            points: where random points come from; None draws from the default generator.
        """
        self.check_targets(predictions, targets)
        points = points or RandomPoints(predictions.class_logits.device)
        matches = self.match(predictions, targets, points)
        divisor = num_masks(targets, self.reduce_num_masks, predictions.class_logits.device)
        classes = self.class_losses(predictions.class_logits, matches, targets)
        masks, dice = self.mask_losses(predictions, matches, targets, points)
        return self.named(classes, masks / divisor, dice / divisor)

    @torch.no_grad()
    def match(self, predictions: MaskPredictions, targets: Sequence[MaskTargets], points: PointSource) -> Matches:
        """Hungarian matching of every head and image, in float32 whatever autocast says."""
        with torch.autocast(predictions.class_logits.device.type, enabled=False):
            return self._match(predictions, targets, points)

    def _match(self, predictions: MaskPredictions, targets: Sequence[MaskTargets], points: PointSource) -> Matches:
        heads = predictions.class_logits.shape[0]
        matches: Matches = [[] for _ in range(heads)]
        for index in [heads - 1, *range(heads - 1)]:
            for image, target in enumerate(targets):
                drawn = points.matching(head_of(index, heads), image, self.num_points)
                matches[index].append(assign(self.matching_cost(predictions, index, image, target, drawn)))
        return matches

    @torch.no_grad()
    def matching_cost(
        self, predictions: MaskPredictions, head: int, image: int, target: MaskTargets, points: Tensor
    ) -> Tensor:
        """Cost [Q, G] of one head and image at points [P, 2]; all frames of a clip share the points."""
        logits = _logits_at_points(predictions, head, image, points)
        wanted = _targets_at_points(target.masks, predictions.padded_size, points)
        cross_entropy, dice = operators.pairwise_mask_cost(logits, wanted)
        classes = class_cost(predictions.class_logits[head, image], target.labels)
        return self.weights.mask * cross_entropy + self.weights.classes * classes + self.weights.dice * dice

    def mask_losses(
        self, predictions: MaskPredictions, matches: Matches, targets: Sequence[MaskTargets], points: PointSource
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy and dice of the matched masks, summed over them: two [heads].

        Every frame of a matched mask is a mask of its own, with its own points. Where nothing is matched both are
        zeros that still reach every parameter behind the masks, so that distributed training does not wait for them.
        """
        logits = matched_mask_logits(predictions, matches)  # [heads, N, T, h, w]
        heads, count = logits.shape[0], logits.shape[1] * logits.shape[2]
        if count == 0:
            nothing = (predictions.mask_embeddings.sum() + predictions.mask_features.sum()) * 0.0
            return nothing.expand(heads), nothing.expand(heads)
        logits = logits.reshape(heads, count, *logits.shape[-2:]).float()
        chosen = torch.stack(
            [self.choose_points(logits[index], head_of(index, heads), points) for index in range(heads)]
        )  # [heads, N T, P, 2]
        wanted = torch.cat(
            [
                _matched_targets_at_points(of_head, targets, predictions.padded_size, chosen[index])
                for index, of_head in enumerate(matches)
            ]
        )  # [heads N T, P]
        sampled = operators.sample_points(logits.flatten(0, 1)[:, None], chosen.flatten(0, 1))[:, 0]
        masks, dice = operators.point_mask_loss(sampled, wanted)
        return masks.view(heads, count).sum(1), dice.view(heads, count).sum(1)

    @torch.no_grad()
    def choose_points(self, logits: Tensor, head: int, points: PointSource) -> Tensor:
        """Points [N, P, 2] of one head's masks [N, h, w]: the most uncertain candidates, then uniform ones."""
        count = logits.shape[0]
        kept = int(self.importance_ratio * self.num_points)
        candidates = points.oversampled(head, count, int(self.num_points * self.oversample_ratio))
        sampled = operators.sample_points(logits[:, None], candidates)[:, 0]
        nearest = operators.most_uncertain(sampled, kept)
        chosen = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
        if kept == self.num_points:
            return chosen
        return torch.cat((chosen, points.remainder(head, count, self.num_points - kept)), dim=1)


def _logits_at_points(predictions: MaskPredictions, head: int, image: int, points: Tensor) -> Tensor:
    """Mask logits [Q, T * P] of all queries of one head and image at points [P, 2], float32.

    Features are sampled first: sampling is linear, so the masks themselves need not exist. Where the map has fewer
    pixels than there are points, forming the map is the smaller job.
    """
    features = predictions.mask_features[image]  # [T, E, h, w]
    embeddings = predictions.mask_embeddings[head, image]
    frames, channels, height, width = features.shape
    grid = points.expand(frames, -1, -1)
    if height * width <= len(points):
        logits = predictions.mask_logits(image, head).float().transpose(0, 1)  # [T, Q, h, w]
        return operators.sample_points(logits, grid).transpose(0, 1).flatten(1)
    sampled = operators.sample_points(features.float(), grid)  # [T, E, P]
    return embeddings.float() @ sampled.transpose(0, 1).reshape(channels, -1)


def _scaled(points: Tensor, padded: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Points of the padded image as points of the unpadded one at its upper left; padding lies beyond 1."""
    if padded == size:
        return points
    return points * points.new_tensor([padded[1] / size[1], padded[0] / size[0]])


def _targets_at_points(masks: Tensor, padded: tuple[int, int], points: Tensor) -> Tensor:
    """Targets [G, T * P] of masks [G, (T,) H, W] at points [P, 2] of the padded image, in [0, 1]."""
    clip = as_clip(masks)
    count, frames, height, width = clip.shape
    if count == 0:
        return points.new_zeros((0, frames * len(points)))
    planes = clip.reshape(1, count * frames, height, width).to(points.dtype)
    sampled = operators.sample_points(planes, _scaled(points, padded, (height, width))[None])
    return sampled.view(count, -1)


def _matched_targets_at_points(
    matches: Sequence[Match], targets: Sequence[MaskTargets], padded: tuple[int, int], points: Tensor
) -> Tensor:
    """Targets [N * T, P] of one head's matched masks at their own points [N * T, P, 2]."""
    sampled, start = [], 0
    for match, target in zip(matches, targets, strict=True):
        clip = as_clip(target.masks)[match.targets].flatten(0, 1)  # [n T, H, W]
        if len(clip) == 0:
            continue
        own = _scaled(points[start : start + len(clip)], padded, (clip.shape[1], clip.shape[2]))
        sampled.append(operators.sample_points(clip[:, None].to(points.dtype), own)[:, 0])
        start += len(clip)
    return torch.cat(sampled)
