"""Cases of Mask2Former on images: draws of the published run are handed over, all else is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fssops
from fssops import ops
from fssops.losses.mask_criterion import Matches, head_of, matched_mask_logits
from fssops.models.mask2former import Mask2Former, Mask2FormerConfig
from fssops.models.pixel_decoders.features import PixelFeatures
from fssops.structures import MaskPredictions, MaskTargets
from fssops.weights.layouts.universal import MASK2FORMER
from parity_cases import universal as common
from parity_cases.case import Case, Line, compared
from parity_cases.recorded import RecordedPoints


def recognise(description: dict[str, Any]) -> bool:
    """Whether a case.json is one of Mask2Former's on images."""
    return description.get("system") == "Mask2Former"


def build(case: Case) -> Mask2Former:
    """The model of the case with its weights."""
    model = Mask2Former(Mask2FormerConfig(**options_of(case)))
    fssops.load_weights(model, case.weights())
    return model


def options_of(case: Case) -> dict[str, Any]:
    """Options of :class:`Mask2FormerConfig` from ``config_used``."""
    used = case.description["config_used"]
    former, head = used["MODEL.MASK_FORMER"], used["MODEL.SEM_SEG_HEAD"]
    return {
        **common.shared_options(case),
        "encoder_layers": head["TRANSFORMER_ENC_LAYERS"],
        "decoder_layers": former["DEC_LAYERS"] - 1,
        "decoder_hidden": former["DIM_FEEDFORWARD"],
        "class_weight": former["CLASS_WEIGHT"],
        "train_points": former["TRAIN_NUM_POINTS"],
        "oversample_ratio": former["OVERSAMPLE_RATIO"],
        "importance_ratio": former["IMPORTANCE_SAMPLE_RATIO"],
    }


def drawn(case: Case, name: str, index: int) -> torch.Tensor:
    """The ``index``-th draw of a name."""
    own = f"{name}__{index:03d}"
    return case.tensor(own) if own in case.arrays else case.tensor(name)[index]


def points_of(case: Case, images: int, heads: int, part: str = "") -> RecordedPoints:
    """The published run's draws, which come head after head in call order.

    Args:
        case: with its draws.
        images: in the batch.
        heads: prediction heads.
        part: "_dn" for those of MP-Former's piloted queries, which are not matched.
    """
    order = [head_of(head, heads) for head in common.call_order(heads)]
    count = sum(1 for entry in case.description["rng_order"] if entry[0] == f"pts_over{part}")
    matching = {
        (head, image): drawn(case, "pts_match", position * images + image)[0]
        for position, head in enumerate(order)
        for image in range(images)
    }
    return RecordedPoints(
        matching,
        {head: drawn(case, f"pts_over{part}", p) for p, head in enumerate(order) if p < count},
        {head: drawn(case, f"pts_rand{part}", p) for p, head in enumerate(order) if p < count},
    )


def run(case: Case) -> Iterator[Line]:
    """Compare every array of the case."""
    model = build(case).train()
    batch = common.batch_of(case)
    assert batch.targets is not None
    trained = trained_arrays(case, model, batch.images, batch.targets)
    found, (predictions, matches, points) = trained
    found["pred_masks"] = found["pred_masks"][:, :, :, 0]  # type: ignore[call-overload,index]
    losses = model.losses(batch, points)
    found |= loss_arrays(case, model, losses)

    fresh = build(case).eval()
    results = fresh.segment(batch)
    found |= common.result_arrays(case, results)
    yield from common.group_lines(case, model, MASK2FORMER)
    yield from point_lines(case, model, predictions, matches, points)
    yield from common.lines(case, found, results)


Trained = tuple[common.Computed, tuple[MaskPredictions, Matches, RecordedPoints]]


def trained_arrays(
    case: Case, model: Mask2Former, images_given: Sequence[Tensor], targets: Sequence[MaskTargets], frames: int = 1
) -> Trained:
    """Everything up to the losses, by the case's names; ``frames`` images in a row are one clip.

    Returns:
        the arrays; and predictions, matches and points.
    """
    images, _ = model.image_input(images_given)
    features = model.backbone(images)
    decoded = model.pixel_decoder(features)
    found = feature_arrays(case, features, decoded)

    decoder = model.transformer_decoder
    memory = model.memory_of(decoded, None, frames)
    queries = decoder.query_feat.weight.expand(len(targets), -1, -1)

    def record(layer: int, mask: ops.AttentionMask) -> None:
        found[f"attn_mask{layer}"] = np.packbits(mask.closed()[:, 0].numpy(), axis=-1)

    positions = None if decoder.query_embed is None else decoder.query_embed.weight
    with common.watched_masks(decoder, record):
        said = decoder.decode(queries, positions, memory, auxiliary=True)
    size = (int(images.shape[2]), int(images.shape[3]))
    mask_features = decoded.mask_features.unflatten(0, (-1, frames))
    predictions = MaskPredictions(said.class_logits, said.mask_embeddings, mask_features, size)
    found["pred_logits"] = predictions.class_logits
    found["pred_masks"] = common.all_mask_logits(predictions)

    heads = predictions.class_logits.shape[0]
    points = points_of(case, len(targets), heads)
    matches = model.criterion.match(predictions, targets, points)
    found |= common.assignment_arrays(matches)
    found |= cost_arrays(model, predictions, targets, points)
    return found, (predictions, matches, points)


def loss_arrays(case: Case, model: Mask2Former, losses: Mapping[str, Tensor]) -> common.Computed:
    """Losses, and the gradients that they give."""
    found: common.Computed = {f"loss/{name}": value for name, value in losses.items()}
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    return {**found, "loss_total": total, **common.gradient_arrays(case, model, MASK2FORMER)}


def feature_arrays(case: Case, features: Mapping[str, Tensor], decoded: PixelFeatures) -> common.Computed:
    """Maps of backbone and pixel decoder, every k-th channel."""
    found = common.backbone_arrays(case, features, decoded)
    for level, tokens in enumerate(decoded.memory):
        maps = tokens.transpose(1, 2).unflatten(2, decoded.sizes[level])
        found[f"pixdec_ms{level}"] = maps[:, :: case.description["strides"][f"ms{level}"]]
    return found


def cost_arrays(
    model: Mask2Former, predictions: MaskPredictions, targets: Sequence[MaskTargets], points: RecordedPoints
) -> common.Computed:
    """``cost{b}`` [heads, Q, n] in call order."""
    heads, count = predictions.class_logits.shape[0], model.config.train_points

    def cost(head: int, image: int) -> Tensor:
        drawn_points = points.matching(head_of(head, heads), image, count)
        return model.criterion.matching_cost(predictions, head, image, targets[image], drawn_points)

    return {
        f"cost{image}": torch.stack([cost(head, image) for head in common.call_order(heads)])
        for image in range(len(targets))
    }


def point_lines(
    case: Case,
    model: Mask2Former,
    predictions: MaskPredictions,
    matches: Any,
    points: RecordedPoints,
    name: str = "pts_final",
) -> Iterator[Line]:
    """``pts_final``: the same set of points a mask, in any order."""
    want = case.arrays.get(name)
    if want is None:
        return
    heads = predictions.class_logits.shape[0]
    with torch.no_grad():
        chosen = model.criterion.choose_points(matched_mask_logits(predictions, matches), points)
        got = torch.cat(chosen, dim=1)[common.call_order(heads)]

    def ordered(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        keys = values[..., 0].astype(np.float64) * 4096 + values[..., 1]
        return np.take_along_axis(values, np.argsort(keys, axis=-1)[..., None], axis=-2)

    yield compared(name, ordered(got.numpy()), ordered(want), common.FLOATS)
