"""Cases of MSANet: square images, masks 0/1/255, published behaviour, every intermediate of one forward pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import fssops
from fssops.models.msanet import MSANet
from fssops.models.msanet.similarity import positions_above_mean, resize
from fssops.structures import FewShotBatch
from parity_cases.case import (
    Case,
    Line,
    compared,
    compared_exactly,
    compared_gradient,
    compared_share,
    not_compared,
    our_names,
    summary_of,
)

_SHORTENED = re.compile(r"^(?P<name>.+?)\.(?P<form>stats|sample|ch(?P<low>\d+)_(?P<high>\d+))$")

_SHOT_WEIGHTS = re.compile(r"weight")
"""The weights of shots, which the open case with its one shot does not name; no other array is called so."""

_ROW_STEP = re.compile(r"every (\d+)(?:st|nd|rd|th)\b[^,;]*?(?:\bfor (\w+)|(?=[,;]|$))")
"""Step, and the data set it is said of, if it is."""


def recognise(description: dict[str, Any]) -> bool:
    """Whether a case.json is one of MSANet's."""
    return str(description.get("model", "")).startswith("MSANet")


def model_of(case: Case) -> MSANet:
    """The network that the case's configuration describes, with the case's weights."""
    config = case.description["config"]
    backbone = "vgg16" if config.get("vgg") else f"resnet{config.get('layers', 50)}"
    shapes = {key: shape for key, shape, _ in case.description["state"]}
    model = fssops.create_model(
        "msanet",
        backbone=backbone,
        base_classes=int(shapes["learner_base.1.4.bias"][0]) - 1,
        shots=int(config.get("shot", 1)),
        shot_hidden=int(config.get("kshot_trans_dim", 2)),
        behaviour="published",
    )
    assert isinstance(model, MSANet)
    fssops.load_weights(model, {f"module.{key}": value for key, value in case.weights().items()})
    return model.eval()


def batch_of(case: Case) -> FewShotBatch:
    """The case's inputs: x, s_x, s_y, y_m, y_b, cat_idx."""
    masks = case.tensor("s_y")
    targets = case.tensor("y_m", torch.long)
    base = case.tensor("y_b", torch.long) if "y_b" in case.arrays else None
    channel = case.tensor("cat_idx", torch.long).flatten() + 1 if "cat_idx" in case.arrays else None
    return FewShotBatch(
        support_images=case.tensor("s_x", torch.float32)[:, None],
        support_foreground=(masks == 1).float()[:, None],
        support_background=(masks == 0).float()[:, None],
        query_images=case.tensor("x", torch.float32)[:, None],
        query_labels=targets[:, None],
        classes=torch.zeros(len(masks), 1, dtype=torch.long),
        query_base_labels=None if base is None else base[:, None],
        base_channels=None if channel is None else channel[:, None],
    )


def _backbone_outputs(model: MSANet, images: Tensor) -> dict[str, Tensor]:
    """layer0 .. layer4, by forward hooks on our stages."""
    backbone: Any = model.backbone
    wanted = backbone.taps
    vgg = model.config.backbone == "vgg16"
    first = ("res1", "res2") if vgg else ("stem", "res2")
    backbone.taps = (*first, *wanted)
    with torch.no_grad():
        outputs = backbone(images)
    names = backbone.taps
    backbone.taps = wanted
    return {f"layer{number}": outputs[name] for number, name in enumerate(names)}


def _taps(model: MSANet, images: Tensor) -> list[Tensor]:
    """The features that the authors tap, in their order."""
    features = model.encode(images)
    found = [features[name] for name in model.layer_names]
    if model.config.backbone != "vgg16":
        taps: list[Tensor] = []
        with torch.no_grad():
            model.backbone(images, {"res2": taps.append})
        found.insert(0, taps[-1])
    return found


def computed(case: Case, model: MSANet) -> dict[str, Tensor]:
    """Everything that a case of MSANet may hold, by the case's names, shortened ones in full."""
    batch = batch_of(case)
    images, supports = batch.query_images.flatten(0, 1), batch.support_images[:, 0]
    size = (images.shape[-2], images.shape[-1])
    shots = supports.shape[1]
    found: dict[str, Tensor] = {f"query.{name}": x for name, x in _backbone_outputs(model, images).items()}
    found["query.simfeats"] = _stats_of(_taps(model, images))
    for shot in range(shots):
        found.update({f"supp{shot}.{k}": x for k, x in _backbone_outputs(model, supports[:, shot]).items()})
        found[f"supp{shot}.simfeats"] = _stats_of(_taps(model, supports[:, shot]))
    with torch.no_grad():
        found["final_out"] = model(batch)[:, 0]
        query = model.encode(images)
        support = model.summarise(
            model.encode(batch.support_images.flatten(0, 2)), batch.support_foreground, batch.support_background
        )
        parts = model.match_parts(support, query, size)
        evaluated = model.compare(support, query)
        trained = model.compare(support, query, batch.base_channels)
    found["meta_out"], found["base_out"] = parts["meta"][:, 0], parts["base"][:, 0]
    found["final_argmax"] = found["final_out"].argmax(1).to(torch.uint8)
    found["base_argmax"] = found["base_out"].argmax(1).to(torch.uint8)
    found["sim_selected_count"] = _kept(model, support, batch)
    middle = support.attention.shape[-2:]
    found["supp_mask_down"] = resize(batch.support_foreground[:, 0], (middle[0], middle[1]))[:, :, None]
    found["supp_proto_per_shot"] = support.prototypes[..., None, None]
    found["sim_maps"], found["sim_reduced"] = evaluated.similarity, evaluated.reduced
    found["query_feat_256"], found["prototype"] = evaluated.query, evaluated.prototype
    found["prior_mask"], found["attention_feat"] = evaluated.prior, evaluated.attention
    found["gate_in"], found["gate_out"] = _gate_inputs(model, batch), support.gates
    shape = (-1, -1, *middle)
    found["merge_feat"] = torch.cat(
        [
            evaluated.query,
            evaluated.prototype[..., None, None].expand(shape),
            evaluated.reduced,
            evaluated.prior,
            evaluated.attention,
        ],
        dim=1,
    )
    found["init_merge"] = evaluated.merged
    with torch.no_grad():
        found["aspp"] = model.decoder.aspp(evaluated.merged)
    found["meta_out_lowres"], found["base_out_lowres"] = evaluated.meta, evaluated.base
    found["psi"], found["psi_per_shot"] = evaluated.scene_distance[:, None], evaluated.scene_distances
    found["shot_weights"] = evaluated.shot_weights
    found["gram_query"] = query["gram"]
    found["base_map_eval"], found["base_map_train"] = evaluated.base_share, trained.base_share
    found["merge_bg_lowres_eval"], found["meta_fg_adj_lowres"] = evaluated.ensemble[:, :1], evaluated.ensemble[:, 1:]
    if batch.query_base_labels is not None:
        losses = model.losses(batch)
        found["train_main_loss"], found["train_aux1_meta"] = losses["loss_final"], losses["loss_meta"]
        found["train_aux2_base"] = losses["loss_base"]
        found["train_total_loss"] = torch.stack(list(losses.values())).sum()
        found["train_argmax"] = resize(trained.ensemble, size).argmax(1).to(torch.uint8)
        found["train_total_loss"].backward()
    return found


def _stats_of(taps: list[Tensor]) -> Tensor:
    return torch.stack([summary_of(tap, "stats") for tap in taps])


def _kept(model: MSANet, support: Any, batch: FewShotBatch) -> Tensor:
    """Number of kept positions, [K, taps, B]; the tap of res2, which is not compared, counts the same way."""
    counts = [(mask > 0).sum((-2, -1)) for mask in support.masks]
    if model.config.backbone != "vgg16":
        height, width = batch.query_images.shape[-2:]
        first = ((height + 3) // 4, (width + 3) // 4)
        masks = resize(resize(batch.support_foreground[:, 0], (2 * first[0], 2 * first[1])), first)
        counts.insert(0, (positions_above_mean(masks, exact_mean=True) > 0).sum((-2, -1)))
    # An empty mask leaves one column, of zeros.
    return torch.stack(counts).clamp(min=1).permute(2, 0, 1)


def _gate_inputs(model: MSANet, batch: FewShotBatch) -> Tensor:
    inputs: list[Tensor] = []
    handle = model.gate.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    with torch.no_grad():
        model.summarise(
            model.encode(batch.support_images.flatten(0, 2)), batch.support_foreground, batch.support_background
        )
    handle.remove()
    return inputs[0][:, :, 0, 0].unflatten(0, batch.support_foreground.shape[0::2][:2])


def _row_step(case: Case, name: str) -> int:
    """Every how manieth row and column an array ``<whole>_s<step>`` keeps.

    The case's words count, e.g. "every 4th row/column from 0 for pascal, every 8th for coco": there the name is that of
    the cases of Pascal for COCO too.
    """
    told = {of: int(step) for step, of in _ROW_STEP.findall(case.what(name))}
    by_name = int(name.rpartition("_s")[2])
    return told.get(str(case.description["config"].get("data_set", "")).lower(), told.get("", by_name))


def shortened(case: Case, found: dict[str, Tensor], name: str) -> Tensor | None:
    """An array of the case from what was computed: whole, summarised, or some of its channels, rows and columns."""
    if name in found:
        return found[name]
    if _SHOT_WEIGHTS.search(name):
        return found["shot_weights"]
    if subsampled := re.match(r"^(.+)_s\d+$", name):
        values = found.get(subsampled[1])
        step = _row_step(case, name)
        return None if values is None else values[..., ::step, ::step]
    match = _SHORTENED.match(name)
    if match is None or match["name"] not in found:
        return None
    values = found[match["name"]]
    if match["form"].startswith("ch"):
        return values[:, int(match["low"]) : int(match["high"])]
    # C order of [B, C, h, w], whatever the memory's order.
    return values if match["name"].endswith("simfeats") else summary_of(values.contiguous(), match["form"])


def run(case: Case) -> Iterator[Line]:
    """Compare every array of the case."""
    model = model_of(case)
    found = computed(case, model)
    ours = our_names(model, case.weights())
    close, grad, share = case.tolerance("default", 1e-4), case.tolerance("grad", 2e-3), case.share("argmax", 0.999)
    inputs = case.inputs()
    for name, want in case.arrays.items():
        if name in inputs:
            yield not_compared(name, "input of the model")
        elif name.startswith("grad."):
            yield compared_gradient(name, want, model, ours, grad)
        else:
            values = shortened(case, found, name)
            if values is None:
                yield not_compared(name, "nothing of that name is computed here")
            elif _SHOT_WEIGHTS.search(name):
                yield compared(name, values, want.reshape(values.shape) if want.size == values.numel() else want, close)
            elif name == "sim_selected_count":
                yield compared_exactly(name, values, want)
            elif name.endswith("argmax"):
                yield compared_share(name, values, want, share)
            else:
                yield compared(name, values, want, close)
