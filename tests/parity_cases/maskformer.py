"""Cases of MaskFormer: nothing is random."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import fssops
from fssops.models.maskformer import MaskFormer, MaskFormerConfig
from fssops.weights.layouts.universal import MASKFORMER
from parity_cases import universal as common
from parity_cases.case import Case, Line


def recognise(description: dict[str, Any]) -> bool:
    """Whether a case.json is one of MaskFormer's."""
    return description.get("system") == "MaskFormer"


def build(case: Case) -> MaskFormer:
    """The model of the case with its weights."""
    used = case.description["config_used"]
    former, head = used["MODEL.MASK_FORMER"], used["MODEL.SEM_SEG_HEAD"]
    encoder = head["PIXEL_DECODER_NAME"] == "TransformerEncoderPixelDecoder"
    config = MaskFormerConfig(
        **common.shared_options(case),
        encoder_layers=head["TRANSFORMER_ENC_LAYERS"] if encoder else 0,
        decoder_layers=former["DEC_LAYERS"],
        hidden=former["DIM_FEEDFORWARD"],
        enforce_input_proj=former["ENFORCE_INPUT_PROJ"],
    )
    model = MaskFormer(config)
    fssops.load_weights(model, case.weights())
    return model


def run(case: Case) -> Iterator[Line]:
    """Compare every array of the case."""
    model = build(case).train()
    batch = common.batch_of(case)
    assert batch.targets is not None
    images, _ = model.image_input(batch.images)
    features = model.backbone(images)
    decoded = model.pixel_decoder(features)
    found = common.backbone_arrays(case, features, decoded)
    found["pixdec_transformer_encoder"] = decoded.memory[0].transpose(1, 2).unflatten(2, decoded.sizes[0])
    predictions = model(batch)
    found["pred_logits"] = predictions.class_logits
    found["pred_masks"] = common.all_mask_logits(predictions)[:, :, :, 0]

    criterion = model.criterion
    found |= common.assignment_arrays(criterion.match(predictions, batch.targets))
    for image, target in enumerate(batch.targets):
        small = criterion.targets_at_stride(predictions, target)
        found[f"cost{image}"] = torch.stack(
            [
                criterion.matching_cost(predictions, head, image, target, small)
                for head in common.call_order(predictions.class_logits.shape[0])
            ]
        )
    losses = model.losses(batch)
    found |= {f"loss/{name}": value for name, value in losses.items()}
    found["loss_total"] = torch.stack(list(losses.values())).sum()
    found["loss_total"].backward()
    found |= common.gradient_arrays(case, model, MASKFORMER)

    results = build(case).eval().segment(batch)
    found |= common.result_arrays(case, results)
    yield from common.group_lines(case, model, MASKFORMER)
    yield from common.lines(case, found, results)
