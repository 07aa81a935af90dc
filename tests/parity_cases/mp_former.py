"""Cases of MP-Former: Mask2Former's arrays, and those of the piloted queries; all draws are the published run's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fssops
from fssops import ops
from fssops.models.mp_former import MPFormer, MPFormerConfig
from fssops.weights.layouts.universal import MASK2FORMER
from parity_cases import mask2former
from parity_cases import universal as common
from parity_cases.case import Case, CaseError, Line
from parity_cases.recorded import RecordedNoise

MODES = ("points", "shift", "scale", "shift_scale", "patch", "points_MAE")


def recognise(description: dict[str, Any]) -> bool:
    """Whether a case.json is one of MP-Former's."""
    return description.get("system") == "MP-Former"


def build(case: Case) -> MPFormer:
    """The model of the case with its weights.

    Raises:
        CaseError: a decoder or a mode that the published code cannot run, or that is not MP-Former's.
    """
    used = case.description["config_used"]
    former, noise = used["MODEL.MASK_FORMER"], used["MODEL.DN"]
    decoder, mode = former["TRANSFORMER_DECODER_NAME"], former["DN_MODE"]
    if decoder != "MultiScaleMaskedTransformerDecoderMaskDN" or mode in ("base", "lb", "mask"):
        raise CaseError(
            f"{case.folder}: decoder and mode must be MultiScaleMaskedTransformerDecoderMaskDN and one of"
            f" {', '.join(MODES)}, got {decoder} and {mode}"
        )
    known = mode in MODES  # the published code trains without piloted queries in any other mode
    config = MPFormerConfig(
        **mask2former.options_of(case),
        pilot_mode=mode if known else "points",
        pilot_groups=noise["NUM_DN"] if known else 0,
        noise_scale=noise["NOISE_SCALE"],
        label_noise=max(former["LB_NOISE_RATIO"], 0.0),
        all_layers=former["ALL_LY_DN"],
        head_noise=former["HEAD_DN"] and mode == "points",
        enlarge_above=former["DN_RATIO"],
        classify_piloted=not former["DN_NO_LB"],
        behaviour="published",
    )
    model = MPFormer(config)
    fssops.load_weights(model, case.weights())
    return model


class _Queue:
    """The draws of the piloted queries in call order."""

    def __init__(self, case: Case) -> None:
        order = [entry for entry in case.description["rng_order"] if entry[0].startswith("rng")]
        self._draws = [mask2former.drawn(case, name, index) for name, index in order]

    def take(self) -> Tensor:
        return self._draws.pop(0)

    def take_integers(self, count: int) -> Tensor:
        """The next ``count`` integers, one or many an entry."""
        found: list[Tensor] = []
        while sum(len(part) for part in found) < count:
            found.append(self.take().flatten().long())
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)

    def take_chosen(self, count: int) -> Tensor:
        """Integers of the chosen copies; a call for none of them may have left an empty entry, or no trace."""
        if count or (self._draws and self._draws[0].numel() == 0):
            return self.take().flatten()
        return torch.zeros(0, dtype=torch.int64)


def draws_of(case: Case, config: MPFormerConfig) -> RecordedNoise:
    """The published run's draws by purpose."""
    queue, mode, found = _Queue(case), config.pilot_mode, {}
    if not queue._draws:
        return RecordedNoise({})
    if mode == "points":
        found["cells_0"] = queue.take()
    elif mode in ("shift", "scale", "shift_scale"):
        found["offset"] = queue.take()[:, :2]
        if mode != "shift":
            found["scaled"] = queue.take()
    elif mode == "patch":
        found["upright"] = queue.take()
        integers = queue.take_integers(3 * len(found["upright"])).view(-1, 3)
        found |= {name: integers[:, place] for place, name in enumerate(("short_side", "row", "column"))}
    else:
        queue.take()
        for level in (2, 1, 0):
            found[f"dropped_{level}"] = queue.take().flatten(1)
    if config.label_noise > 0:
        found["relabelled"] = queue.take()
        found["labels"] = queue.take_chosen(int((found["relabelled"] < config.label_noise).sum()))
    elif mode == "shift":
        found["content"] = queue.take()
    if mode == "points":
        for layer in range(1, (config.decoder_layers if config.all_layers else 3) + 1):
            found[f"cells_{layer}"] = queue.take()
    if queue._draws:
        raise CaseError(f"{case.folder}: all draws of {mode} must be used, got {len(queue._draws)} more")
    return RecordedNoise(found)


def run(case: Case) -> Iterator[Line]:
    """Compare every array of the case."""
    model = build(case).train()
    batch = common.batch_of(case)
    assert batch.targets is not None
    draws = draws_of(case, model.config)
    images, _ = model.image_input(batch.images)
    features = model.backbone(images)
    found = mask2former.feature_arrays(case, features, model.pixel_decoder(features))

    def record(layer: int, mask: ops.AttentionMask) -> None:
        found[f"attn_mask{layer}"] = np.packbits(mask.closed()[:, 0].numpy(), axis=-1)

    with common.watched_masks(model.transformer_decoder, record):
        normal, piloted, pilots = model.predict_piloted(images, None, batch.targets, draws)
    found["pred_logits"], found["pred_masks"] = normal.class_logits, common.all_mask_logits(normal)[:, :, :, 0]
    heads = normal.class_logits.shape[0]
    points = mask2former.points_of(case, len(images), heads)
    piloted_points = mask2former.points_of(case, len(images), heads, "_dn")
    matches = model.criterion.match(normal, batch.targets, points)
    found |= common.assignment_arrays(matches)
    found |= mask2former.cost_arrays(model, normal, batch.targets, points)
    if piloted is not None and pilots is not None:
        found["dn_pred_logits"] = piloted.class_logits
        found["dn_pred_masks"] = common.all_mask_logits(piloted)[:, :, :, 0]
        found["self_attn_mask"] = np.packbits(pilots.blocked.numpy(), axis=-1)

    found |= mask2former.loss_arrays(case, model, model.losses(batch, points, draws, piloted_points))
    told = model.transformer_decoder.label_enc.weight.grad
    assert told is not None
    found[f"grad_rows/{MASK2FORMER.theirs('transformer_decoder.label_enc.weight')}"] = told.any(1).nonzero()[:, 0]

    results = build(case).eval().segment(batch)
    found |= common.result_arrays(case, results)
    yield from common.group_lines(case, model, MASK2FORMER)
    yield from mask2former.point_lines(case, model, normal, matches, points)
    if piloted is not None and pilots is not None:
        fixed = [pilots.layout.matches()] * heads
        yield from mask2former.point_lines(case, model, piloted, fixed, piloted_points, "pts_final_dn")
    yield from common.lines(case, found, results)
