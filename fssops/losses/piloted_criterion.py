"""The criterion of MP-Former: Mask2Former's, and the same losses for queries whose targets are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fssops.losses.mask_criterion import LossWeights
from fssops.losses.matcher import Match
from fssops.losses.point_criterion import PointSetCriterion
from fssops.losses.point_sources import PointSource, RandomPoints
from fssops.structures import MaskPredictions, MaskTargets, StepShare


@dataclass
class PilotedPart:
    """Predictions of queries that were told their targets.

    Attributes:
        predictions: of all heads.
        matches: of each image, the same for every head; queries without one are unused and should say "no object".
        copies: how often each target occurs.
    """

    predictions: MaskPredictions
    matches: list[Match]
    copies: int


class PilotedSetCriterion(PointSetCriterion):
    """Adds ``loss_ce_dn``, ``loss_mask_dn``, ``loss_dice_dn`` and those of the auxiliary heads, ``loss_ce_dn_0``...

    The mask losses of the piloted part are divided by the number of targets times their copies. Where a batch has no
    piloted part the terms are zeros, so that the names are always the same.

    Args:
        num_classes: C, without "no object".
        weights: of the terms, in loss and matching cost.
        classify_piloted: whether the piloted part has a class loss.
        **options: of :class:`PointSetCriterion`.
    """

    def __init__(
        self, num_classes: int, weights: LossWeights, *, classify_piloted: bool = True, **options: Any
    ) -> None:
        super().__init__(num_classes, weights, **options)
        self.classify_piloted = classify_piloted

    def forward(
        self,
        predictions: MaskPredictions,
        targets: Sequence[MaskTargets],
        points: PointSource | None = None,
        piloted: PilotedPart | None = None,
        piloted_points: PointSource | None = None,
        *,
        share: StepShare | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses of all heads, normal and piloted; their sum is the training loss.

        Args:
            predictions: of the normal queries.
            targets: one an image; an image may have none.
            points: where random points come from; None draws from the default generator.
            piloted: the piloted part, or None.
            piloted_points: where its points come from; None takes ``points``.
            share: set where the batch is a part of a step. The class loss of the piloted part divides by the weights of
                its own batch all the same: how many unused queries it has depends on which images share the batch.
        """
        self.check_targets(predictions, targets)
        device = predictions.class_logits.device
        points = points or RandomPoints(device)
        divisor = self.masks_divisor(targets, share, device)
        matches = self.match(predictions, targets, points)
        losses = self.matched_losses(predictions, targets, matches, points, divisor, share=share)
        heads = predictions.class_logits.shape[0]
        if piloted is None:
            nothing = torch.zeros(heads, device=device)
            extra = self.named(nothing, nothing, nothing, "_dn")
        else:
            extra = self.matched_losses(
                piloted.predictions,
                targets,
                [piloted.matches] * heads,
                piloted_points or points,
                divisor * piloted.copies,
                "_dn",
            )
        if not self.classify_piloted:
            extra = {name: value for name, value in extra.items() if not name.startswith("loss_ce_dn")}
        return losses | extra
