"""Cases of Mask2Former on videos: clips with tracks, some of which are absent in a frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import fssops
from fssops.models.mask2former_vis import Mask2FormerVIS, Mask2FormerVISConfig
from fssops.structures import ImageBatch, InstanceResult, MaskTargets
from fssops.weights.layouts.universal import MASK2FORMER
from parity_cases import mask2former as images
from parity_cases import universal as common
from parity_cases.case import Case, Line

DETECTIONS = 10
"""Fixed in the published code, whatever ``TEST.DETECTIONS_PER_IMAGE`` says."""


def recognise(description: dict[str, Any]) -> bool:
    """Whether a case.json is one of Mask2Former's on videos."""
    return description.get("system") == "Mask2Former (video)"


def build(case: Case) -> Mask2FormerVIS:
    """The model of the case with its weights."""
    options = {**images.options_of(case), "tasks": ("instance",), "detections": DETECTIONS, "behaviour": "published"}
    model = Mask2FormerVIS(Mask2FormerVISConfig(**options))
    fssops.load_weights(model, case.weights())
    return model


def target_of(case: Case, index: int, classes: int) -> MaskTargets:
    """Tracks of a clip: those whose id is -1 in every frame are dropped; class C says "not annotated here"."""
    frames, _, height, width = case.arrays[f"image{index}"].shape
    ids, labels = case.tensor(f"gt_ids{index}"), case.tensor(f"gt_classes{index}")
    masks = common.unpacked(case.arrays[f"gt_masks{index}"], height * width)
    masks = masks.reshape(len(ids), frames, height, width)
    seen = (ids != -1).any(1)
    annotated = labels != classes
    # The class of a track stands in every frame that is annotated; the smallest entry is one of those.
    own = labels.min(1).values if len(labels) else labels.new_zeros(0)
    return MaskTargets(own[seen], torch.from_numpy(masks)[seen], annotated=annotated[seen])


def batch_of(case: Case, classes: int) -> ImageBatch:
    """The case's clips with their targets."""
    count = len(case.description["sizes"])
    return ImageBatch(
        [case.tensor(f"image{index}") for index in range(count)],
        [target_of(case, index, classes) for index in range(count)],
        [(int(height), int(width)) for height, width in case.description["out_sizes"]],
    )


def run(case: Case) -> Iterator[Line]:
    """Compare every array of the case."""
    model = build(case).train()
    batch = batch_of(case, model.config.num_classes)
    assert batch.targets is not None
    targets = [model.trained_target(target) for target in batch.targets]
    frames = [frame for clip in batch.images for frame in clip]
    found, (predictions, matches, points) = images.trained_arrays(case, model, frames, targets, len(batch.images[0]))
    found |= images.loss_arrays(case, model, model.losses(batch, points))

    fresh = build(case).eval()
    assert batch.output_sizes is not None
    first = ImageBatch(batch.images[:1], output_sizes=batch.output_sizes[:1])
    yield from common.group_lines(case, model, MASK2FORMER)
    yield from images.point_lines(case, model, predictions, matches, points)
    yield from track_lines(case, fresh.segment(first)[0].instance)
    yield from common.lines(case, found, [])


def track_lines(case: Case, result: InstanceResult) -> Iterator[Line]:
    """Tracks matched by class and masks in all frames."""
    wanted = case.arrays.get("inf/scores")
    if wanted is None:
        return
    masks = torch.stack([torch.stack(of_track) for of_track in result.masks]).flatten(2).numpy()
    want_masks = common.unpacked(case.arrays["inf/masks"], masks.shape[2])
    areas = want_masks.sum(2)
    ours = result.scores.numpy(), result.labels.numpy(), masks.reshape(len(masks), -1)
    theirs = wanted, case.arrays["inf/labels"], want_masks.reshape(len(want_masks), -1)
    worst, lost, pixels = common.matched_rows(ours, theirs)
    yield Line("inf/scores", worst, common.FLOATS, "of max|b|")
    yield Line("inf/labels", float(lost), 0.0, "rows without a counterpart")
    yield Line("inf/masks", pixels, 1 - common.SAME_PIXELS, "of the pixels of a track differ")
    unlike = np.abs(areas - case.arrays["inf/mask_areas"]).sum()
    yield Line("inf/mask_areas", max(pixels, float(unlike)), 1 - common.SAME_PIXELS, "compared with the masks")
