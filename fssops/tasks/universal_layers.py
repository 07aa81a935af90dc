"""The layer measures of an evaluated image: its truth as targets, and the matching of every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from fssops.data.universal.dataset import target_at
from fssops.engine.settings import SettingsError
from fssops.evaluation.layer_measures import LayerCounts
from fssops.losses.point_sources import RandomPoints
from fssops.models.mask2former import Mask2Former
from fssops.structures import MaskPredictions, move_to
from fssops.tasks.universal_counting import TestItem
from fssops.truth import TruthKind


def measured(model: nn.Module) -> Mask2Former:
    """The model as one whose layers can be measured.

    Raises:
        SettingsError: it has no masked-attention decoder.
    """
    if not isinstance(model, Mask2Former):
        raise SettingsError(
            "eval.layer_measures must be off but for mask2former and mp_former, whose layers attend inside the masks of"
            f" those before, got {getattr(model, 'name', type(model).__name__)}"
        )
    return model


def layer_watcher(
    model: Mask2Former, counts: LayerCounts, item: TestItem, kind: TruthKind, things: Sequence[int]
) -> Callable[[MaskPredictions], None]:
    """A function that counts an image when it is given all heads' predictions of it.

    Args:
        model: whose matching is taken.
        counts: to add to.
        item: the image and its truth.
        kind: which masks the model was trained on.
        things: indices of the countable classes.
    """
    size = (int(item.seen.image.shape[-2]), int(item.seen.image.shape[-1]))

    def watch(predictions: MaskPredictions) -> None:
        device = predictions.class_logits.device
        target = move_to(target_at(item.truth, kind, size, things), device)
        # Every image has its own points, whatever was measured before it and on how many processes.
        points = RandomPoints(device, torch.Generator(device).manual_seed(item.number))
        matches = model.criterion.match(predictions, [target], points)
        with torch.autocast(device.type, enabled=False):
            counts.add(predictions, 0, size, [(of_head[0].queries, of_head[0].targets) for of_head in matches])

    return watch
