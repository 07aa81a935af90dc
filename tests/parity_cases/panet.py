"""Cases of PANet: way-major lists of supports, masks already built, published VGG-16 encoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fssops
from fssops.models.panet import PANet
from fssops.structures import FewShotBatch
from parity_cases.case import (
    Case,
    Line,
    compared,
    compared_gradient,
    compared_share,
    not_compared,
    our_names,
    summary_of,
)


def recognise(description: dict[str, Any]) -> bool:
    """Whether a case.json is one of PANet's."""
    return str(description.get("model", "")).startswith("PANet")


def batch_of(case: Case) -> FewShotBatch:
    """The case's inputs, which are [way, shot, B, ...] and [N, B, ...]."""
    images = case.tensor("support_images", torch.float32).permute(2, 0, 1, 3, 4, 5)
    episodes, ways = images.shape[:2]
    query = case.tensor("query_images", torch.float32).transpose(0, 1)
    labels = case.tensor("query_labels", torch.long)
    return FewShotBatch(
        support_images=images,
        support_foreground=case.tensor("support_fg_mask", torch.float32).permute(2, 0, 1, 3, 4),
        support_background=case.tensor("support_bg_mask", torch.float32).permute(2, 0, 1, 3, 4),
        query_images=query,
        query_labels=labels.unflatten(0, (query.shape[1], episodes)).transpose(0, 1),
        classes=torch.tensor(case.description["config"]["class_ids"]).expand(episodes, ways),
    )


def what_input(case: Case, name: str) -> str:
    """What an input is, and for masks whether the dense rule of the published code gives them."""
    if name == "support_labels":
        return "what the masks were built from"
    if name not in ("support_fg_mask", "support_bg_mask") or "support_labels" not in case.arrays:
        return "input of the model"
    labels, masks = case.arrays["support_labels"], case.arrays[name]
    classes = np.asarray(case.description["config"]["class_ids"])
    if name == "support_fg_mask":
        dense = labels == classes.reshape(-1, *[1] * (labels.ndim - 1))
    else:
        dense = ~np.isin(labels, classes)
    same = np.array_equal(dense, masks == 1)
    return "input of the model; " + ("the dense mask of support_labels" if same else "a weak mask, not support_labels'")


def computed(case: Case, model: PANet) -> dict[str, Tensor]:
    """Everything that a case of PANet may hold, by the case's names (features under "feat")."""
    batch = batch_of(case)
    train = case.description["config"]["mode"] == "train"
    model.train(train)
    found: dict[str, Tensor] = {}
    with torch.set_grad_enabled(train):
        logits = model(batch)
        features = model.encode(torch.cat([batch.support_images.flatten(0, 2), batch.query_images.flatten(0, 1)]))
        losses = model.losses(batch)
    episodes, ways, shots = batch.support_foreground.shape[:3]
    count = episodes * ways * shots
    support, query = features["features"][:count], features["features"][count:]
    summary = model.summarise({"features": support}, batch.support_foreground, batch.support_background)
    # Ours is episode-major, theirs way-major for supports and query-major for queries.
    found["query_pred"] = logits.transpose(0, 1).flatten(0, 1)
    found["query_argmax"] = found["query_pred"].argmax(1).to(torch.uint8)
    found["prototypes"] = summary.prototypes
    lowres = model.match(summary, {"features": query}, (query.shape[-2], query.shape[-1]))
    found["dist_lowres"] = lowres
    found["feat"] = torch.cat(
        [
            support.unflatten(0, (episodes, ways, shots)).permute(1, 2, 0, 3, 4, 5).flatten(0, 2),
            query.unflatten(0, (episodes, -1)).transpose(0, 1).flatten(0, 1),
        ]
    ).contiguous()
    found["query_loss"] = losses["loss_query"]
    if train:
        align = losses.get("loss_align", torch.zeros(()))
        found["align_loss"] = align
        found["total_loss"] = losses["loss_query"] + align
        if model.config.align:
            found["align_loss_per_episode"] = model.alignment_losses(
                support, batch.support_foreground, batch.support_background, query, lowres.flatten(0, 1)
            )
        found["total_loss"].backward()
    return found


def run(case: Case) -> Iterator[Line]:
    """Compare every array of the case."""
    config = case.description["config"]
    model = fssops.create_model("panet", backbone="vgg16", align=bool(config.get("align", True)))
    assert isinstance(model, PANet)
    state = case.weights()
    fssops.load_weights(model, {f"module.{key}": value for key, value in state.items()})
    found = computed(case, model)
    ours = our_names(model, state)
    close, grad, share = case.tolerance("default", 1e-4), case.tolerance("grad", 5e-3), case.share("argmax", 0.999)
    inputs = case.inputs()
    for name, want in case.arrays.items():
        if name in inputs:
            yield not_compared(name, what_input(case, name))
        elif name.startswith("grad."):
            yield compared_gradient(name, want, model, ours, grad)
        elif name.startswith("feat."):
            yield compared(name, summary_of(found["feat"], name.removeprefix("feat.")), want, close)
        elif name == "query_argmax":
            yield compared_share(name, found[name], want, share)
        elif name in found:
            yield compared(name, found[name], want, close)
        else:
            yield not_compared(name, "nothing of that name is computed here")
