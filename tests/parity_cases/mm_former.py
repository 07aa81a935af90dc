"""Cases of MM-Former: the potential objects segmenter alone (POS), and the whole system, plain or SVF.

A case has two modes: arrays without a prefix come from evaluation, those with ``t_`` from one training step. Everything
is driven by ``case.json``: depth, shots, batch, size, salt, and which arrays there are and how they are shortened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fssops
from fssops.losses import proposals as proposal_losses
from fssops.models.layers.image_input import PIXEL_MEAN, PIXEL_STD
from fssops.models.mm_former import LEVELS, MMFormer
from fssops.models.mm_former.alignment import channel_gates, tokens_of
from fssops.models.mm_former.records import MMFormerSupport
from fssops.models.mm_former.segmenter import MMFormerSegmenter, object_target, regions
from fssops.structures import FewShotBatch, MaskPredictions, ProposalBatch
from fssops.weights.layouts.mm_former import our_name, segmenter_name
from parity_cases.case import Case, Line, compared, compared_exactly, not_compared
from parity_cases.recorded import RecordedPoints

_CLASSES = ("POS", "MMFormer", "POS_svf", "MMFormer_svf")
_LEVEL_NUMBER = dict(zip(LEVELS, (4, 3, 2), strict=True))
_TOLERANCES = (
    (r"^(t_)?mask_logits", 5e-4),
    (r"^t_rank_input$", 1e-3),
    (r"^(t_)?S$", 1e-5),
    (r"^(t_)?iou$", 1e-5),
    (r"^(t_)?coef$", 1e-4),
    (r"^out_fg$", 1e-4),
    (r"running_(mean|var)$", 1e-5),
    (r"", 2e-4),
)
"""By the name of an array: section 14 of the system's fact sheet; the first that fits counts."""

_LOSS, _GRADIENT = 1e-3, 5e-3
_INPUT = re.compile(r"^(image|label|sem_seg|support_img|support_label|rand_.*)$")
_SHOT = re.compile(r"(?:^|_)(?:(?:k|s|shot_?)(\d+)|per_shot|shots)(?=_|$)")
_TOLD_SHOT = re.compile(r"\b(?:of|for|at|,) shot (\d+)\b|\b(?:per|each|every) shot\b")
_EACH_SHOT = " of each shot"

Found = dict[str, "Tensor | list[Tensor]"]


@dataclass
class _Step:
    """What one training step gave."""

    arrays: Found = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    matches: dict[str, Tensor] = field(default_factory=dict)


def recognise(description: dict[str, Any]) -> bool:
    """Whether a case.json is one of MM-Former's."""
    model = description.get("model")
    return isinstance(model, dict) and model.get("class") in _CLASSES


def model_of(case: Case) -> MMFormer | MMFormerSegmenter:
    """The network that the case's configuration describes, with the case's weights."""
    table, used = case.description, case.description["key_config"]
    kind = table["model"]["class"]
    svf, alone = kind.endswith("_svf"), kind.startswith("POS")
    options: dict[str, Any] = {
        "backbone": f"resnet{table['model']['depth']}",
        "levels": "stride8" if svf else "pyramid",
        "behaviour": "published",
        "num_queries": used["num_queries"],
        "channels": used["hidden_dim"],
        "heads": used["nheads"],
        "decoder_layers": used["decoder_layers"],
        "decoder_hidden": used["dim_feedforward"],
        "encoder_layers": used["encoder_layers"],
        "encoder_hidden": used["encoder_ffn"],
        "mask_weight": used["mask_weight"],
        "dice_weight": used["dice_weight"],
        "train_points": used.get("train_num_points", 12544),
        "oversample_ratio": used.get("oversample_ratio", 3.0),
        "importance_ratio": used.get("importance_sample_ratio", 0.75),
    }
    if alone:
        options.update(object_weight=used["fewshot_weight"], tuning="singular_values" if svf else "none")
    else:
        options.update(merge_weight=used["fewshot_weight"], rank_weight=0.6 * used["fewshot_weight"])
    model = fssops.create_model("mm_former_segmenter" if alone else "mm_former", **options)
    fssops.load_weights(model, case.weights())
    assert isinstance(model, (MMFormer, MMFormerSegmenter))
    return model


def _normalised(images: Tensor) -> Tensor:
    mean, std = torch.tensor(PIXEL_MEAN).view(3, 1, 1), torch.tensor(PIXEL_STD).view(3, 1, 1)
    return (images.float() - mean) / std


def few_shot_batch(case: Case) -> FewShotBatch:
    """The case's inputs for the whole system."""
    labels = case.tensor("support_label")
    return FewShotBatch(
        support_images=_normalised(case.tensor("support_img"))[:, None],
        support_foreground=(labels == 1).float()[:, None],
        support_background=(labels == 0).float()[:, None],
        query_images=_normalised(case.tensor("image"))[:, None],
        query_labels=case.tensor("label", torch.long)[:, None],
        classes=torch.zeros(len(labels), 1, dtype=torch.long),
    )


def proposal_batch(case: Case) -> ProposalBatch:
    """The case's inputs for the segmenter."""
    regions_of = case.tensor("sem_seg", torch.long)
    return ProposalBatch(_normalised(case.tensor("image")), regions_of, case.tensor("label", torch.long))


def points_of(case: Case) -> RecordedPoints:
    """The random draws: call 0 is the final head, call c head c - 1."""
    matching: dict[tuple[int, int], Tensor] = {}
    over, extra = {}, {}
    for name in case.arrays:
        if match := re.match(r"rand_match(\d+)_b(\d+)$", name):
            matching[int(match[1]) - 1, int(match[2])] = case.tensor(name)[0]
        elif match := re.match(r"rand_(over|extra)(\d+)$", name):
            (over if match[1] == "over" else extra)[int(match[2]) - 1] = case.tensor(name)
    return RecordedPoints(matching, over, extra)


# -- evaluation -----------------------------------------------------------------------------------------------------


def _segmenter_arrays(segmenter: MMFormerSegmenter, maps: dict[str, Tensor]) -> tuple[Found, MaskPredictions]:
    states: list[Tensor] = []
    handle = segmenter.transformer_decoder.decoder_norm.register_forward_hook(lambda *_: states.append(_[2]))
    inputs = segmenter.pixel_inputs(maps)
    predictions = segmenter.predict(*inputs, auxiliary=True)
    handle.remove()
    decoded = segmenter.pixel_decoder.decode(*inputs)
    found: Found = {f"q_layer{number}": maps[f"res{number + 1}"] for number in range(1, 5)}
    found["mask_features"] = decoded.mask_features
    for number, (tokens, size) in enumerate(zip(decoded.memory, decoded.sizes, strict=True)):
        found[f"pix_ms{number}"] = tokens.transpose(1, 2).unflatten(2, size)
    features = predictions.mask_features[:, 0]
    for number, embeddings in enumerate(predictions.mask_embeddings):
        found[f"mask_logits_d{number}"] = torch.einsum("bqc,bchw->bqhw", embeddings, features)
    found["mask_logits"] = segmenter.mask_logits(predictions)
    found["mask_embed"], found["decoder_output"] = predictions.mask_embeddings[-1], states[-1]
    return found, predictions


def _overlaps(masks: Tensor, labels: Tensor, size: tuple[int, int]) -> Tensor:
    return proposal_losses.soft_iou(masks, *object_target(labels, size, all_count=True))


def _evaluated_segmenter(case: Case, model: MMFormerSegmenter) -> Found:
    batch = proposal_batch(case)
    found, predictions = _segmenter_arrays(model, model.features(batch.images))
    masks = model.mask_logits(predictions).sigmoid()
    overlap = _overlaps(masks, batch.objects, predictions.padded_size)
    chosen = masks[torch.arange(len(masks)), model.chosen_proposal(overlap)]
    full = proposal_losses.upsampled(chosen[:, None], predictions.padded_size)[:, 0]
    found.update(iou=overlap, top2_index=overlap.topk(2, dim=1).indices, out_fg=full)
    found["out_argmax_fg_fraction"] = (full > 1 - full).float().mean()[None]
    return found


def _alignment_arrays(model: MMFormer, batch: FewShotBatch) -> Found:
    """Every step of the alignment over all tokens; of the support a list over shots."""
    found: Found = {}
    query = model.segmenter.features(batch.query_images.flatten(0, 1))
    shots = [model.segmenter.features(images) for images in batch.support_images[:, 0].unbind(1)]
    labels = batch.support_foreground[:, 0]
    for level, (name, projection) in enumerate(zip(LEVELS, model.projections, strict=True)):
        number = _LEVEL_NUMBER[name]

        def aligned(x: Tensor, projection: Any = projection) -> tuple[Tensor, Tensor, Tensor]:
            gates = channel_gates(x)
            gated = x * gates[:, :, None, None]
            return gates, gated, projection(gated)

        gates, gated, own = aligned(query[name])
        size = (int(own.shape[2]), int(own.shape[3]))
        place = model._positions(size, own.device)
        plane = place.t().unflatten(1, size)[None].expand_as(own)
        tokens, key, value = model._tokens_and_keys(own)
        rows: dict[str, list[Tensor]] = {}
        for shot, features in enumerate(shots):
            s_gates, s_gated, other = aligned(features[name])
            soft = torch.nn.functional.interpolate(
                labels[:, shot, None], size=size, mode="bilinear", align_corners=False
            )
            masked, masked_place = other * soft, plane * soft
            s_value = tokens_of(model._shortened(masked))
            s_key = s_value + tokens_of(model._shortened(masked_place))
            align = model.cross_alignment[level]
            q_cross = align(tokens, place, s_key, s_value)
            s_cross = align(tokens_of(masked), tokens_of(masked_place), key, value)
            for title, values in (
                ("s_selfalign_gate", s_gates),
                ("s_selfalign", s_gated),
                ("s_proj", other),
                ("s_masked", masked),
                ("s_pos", masked_place),
                ("q_cross", q_cross.transpose(1, 2).unflatten(2, size)),
                ("s_cross", s_cross.transpose(1, 2).unflatten(2, size)),
            ):
                rows.setdefault(title, []).append(values)
        for title, values in (("q_selfalign_gate", gates), ("q_selfalign", gated), ("q_proj", own), ("q_pos", plane)):
            found[f"{title}_l{number}"] = values
        for title, listed in rows.items():
            found[f"{title}_l{number}"] = listed
    return found


def prototypes_by_shot(model: MMFormer, support: MMFormerSupport, query: dict[str, Tensor]) -> Found:
    """Prototypes as each shot alone gives them; users see their mean."""
    rows: dict[str, list[Tensor]] = {"q_proto": [], "s_proto": []}
    for k in range(support.weights.shape[1]):
        alone = MMFormerSupport(
            support.ways,
            *([x[:, k : k + 1] for x in level] for level in (support.keys, support.values, support.tokens)),
            support.positions[:, k : k + 1],
            support.weights[:, k : k + 1],
        )
        result = model.compare(alone, query)
        rows["q_proto"].append(result.query_prototypes[:, 0])
        rows["s_proto"].append(result.support_prototypes)
    return {f"{name}{_EACH_SHOT}": listed for name, listed in rows.items()}


def _result_arrays(model: MMFormer, batch: FewShotBatch) -> Found:
    """Similarity, coefficients and merge, by the steps that users run."""
    shots = batch.support_foreground.shape[2]
    features = [model._features(images, proposals=False) for images in batch.support_images[:, 0].unbind(1)]
    stacked = {name: torch.stack([f[name] for f in features], dim=1).flatten(0, 1) for name in features[0]}
    assert len(stacked["size"]) == shots * len(batch.classes)
    support = model.summarise(stacked, batch.support_foreground, batch.support_background)
    query = model._features(batch.query_images.flatten(0, 1), proposals=True)
    found = model.compare(support, query)
    return {
        **prototypes_by_shot(model, support, query),
        "q_proto": found.query_prototypes[:, 0],
        "s_proto": found.support_prototypes,
        "S": found.similarity[:, 0],
        "coef": found.coefficients[:, 0],
    }


def _evaluated_system(case: Case, model: MMFormer) -> Found:
    batch = few_shot_batch(case)
    found, _ = _segmenter_arrays(model.segmenter, model.segmenter.features(batch.query_images.flatten(0, 1)))
    found.update(_alignment_arrays(model, batch))
    found.update(_result_arrays(model, batch))
    out = model(batch)[:, 0]
    found["out_fg"] = out[:, 1]
    found["out_argmax_fg_fraction"] = out.argmax(1).float().mean()[None]
    return found


# -- training -------------------------------------------------------------------------------------------------------


def _trained_segmenter(case: Case, model: MMFormerSegmenter) -> _Step:
    batch, points, step = proposal_batch(case), points_of(case), _Step()
    predictions: list[MaskPredictions] = []
    original = model.predict
    model.predict = lambda *a, **k: predictions.append(original(*a, **k)) or predictions[-1]  # type: ignore[method-assign]
    losses = model.losses(batch, points)
    del model.predict
    found = predictions[0]
    with torch.no_grad():
        matches = model.criterion.match(found, [regions(label) for label in batch.labels], points)
        logits = model.mask_logits(found)
        overlap = _overlaps(logits.sigmoid(), batch.objects, found.padded_size)
    for call, head in enumerate([len(matches) - 1, *range(len(matches) - 1)]):
        for image, match in enumerate(matches[head]):
            step.matches[f"t_match{call}_b{image}"] = torch.stack([match.queries, match.targets])
    step.arrays = {"mask_logits": logits, "iou": overlap, "top2_index": overlap.topk(2, dim=1).indices}
    step.losses = {name.replace("loss_object", "fewshot_loss"): value for name, value in losses.items()}
    return step


def _trained_system(case: Case, model: MMFormer) -> _Step:
    batch, step = few_shot_batch(case), _Step()
    kept: dict[str, Any] = {}
    compare = model.compare

    def recorded(support: Any, features: dict[str, Tensor]) -> Any:
        kept.update(support=support, features=features, found=compare(support, features))
        return kept["found"]

    model.compare = recorded  # type: ignore[method-assign]
    losses = model.losses(batch)
    del model.compare
    step.losses = {"fewshot_loss": losses["loss_merge"], "co_loss": losses["loss_rank"]}
    found, features, support = kept["found"], kept["features"], kept["support"]
    padded = (4 * features["proposals"].shape[2], 4 * features["proposals"].shape[3])
    with torch.no_grad():
        overlap = _overlaps(features["proposals"], batch.query_labels[:, 0], padded)
        ranked, chosen = proposal_losses.ranked_similarities(found.similarity[:, 0], overlap)
        for level, name in enumerate(LEVELS):
            tokens, _, _ = model._tokens_and_keys(features[name])
            size = (int(features[name].shape[2]), int(features[name].shape[3]))
            place, align = model._positions(size, tokens.device), model.cross_alignment[level]
            step.arrays[f"q_cross_l{_LEVEL_NUMBER[name]}"] = [
                align(tokens, place, support.keys[level][:, k], support.values[level][:, k])
                .transpose(1, 2)
                .unflatten(2, size)
                for k in range(support.weights.shape[1])
            ]
        step.arrays.update(prototypes_by_shot(model, support, features))
    step.arrays.update(
        mask_logits=features["proposals"].logit(),
        iou=overlap,
        S=found.similarity[:, 0],
        coef=found.coefficients[:, 0],
        q_proto=found.query_prototypes[:, 0],
        s_proto=found.support_prototypes,
        rank_input=ranked,
        min_iou_query=chosen[:, 0],
        max_iou_query=chosen[:, 1],
    )
    return step


# -- comparison -----------------------------------------------------------------------------------------------------


def values_of(case: Case, name: str, found: Found) -> Tensor | None:
    """The whole array that a name of the case stands for; None where nothing of that name is computed.

    Of what is computed shot by shot this is, as name or words say, one shot ("q_proto_k2", "... of shot 2") or all of
    them on an axis of their own ("(batch, shot, ...)"). Where neither says a thing it is the nearest shot: the cases
    were recorded by hooks, which keep one.
    """
    base = _SHOT.sub("", name).strip("_")
    listed = found.get(f"{base}{_EACH_SHOT}", found.get(base))
    told = _SHOT.search(name) or _TOLD_SHOT.search(case.what(name))
    whole = found.get(base)
    if not isinstance(listed, list):
        return listed
    shape, part = case.arrays[name].shape, listed[0]
    if told and told[1]:
        return listed[int(told[1])]
    if told or len(shape) == part.ndim + 1:
        axes = (0, 1) if "(shot" in case.what(name) else (1, 0)
        stacks = [torch.stack(listed, dim=axis) for axis in axes]
        return next((stack for stack in stacks if case.cut(name, stack).shape == shape), stacks[0])
    if isinstance(whole, Tensor):
        return whole
    want = case.tensor(name)
    return min(listed, key=lambda values: float((case.cut(name, values.detach()) - want).abs().max()))


def _line(case: Case, name: str, got: Tensor) -> Line:
    want, values = case.arrays[name], case.cut(name, got)
    if want.shape != values.shape and want.size == values.numel():
        values = values.reshape(want.shape)
    if want.dtype.kind in "iu":
        return compared_exactly(name, values, want)
    tolerance = next(number for pattern, number in _TOLERANCES if re.search(pattern, name))
    return compared(name, values, want, tolerance)


def _batch_norm_arrays(case: Case, model: MMFormer | MMFormerSegmenter) -> Found:
    ours = our_name if isinstance(model, MMFormer) else segmenter_name
    state = model.state_dict()
    names = [name for name in case.arrays if re.search(r"^t_.*running_(mean|var)$", name)]
    return {name: state[ours(name.removeprefix("t_"))] for name in names}


def _gradient_lines(case: Case, model: MMFormer | MMFormerSegmenter) -> Iterator[Line]:
    ours = our_name if isinstance(model, MMFormer) else segmenter_name
    parameters = dict(model.named_parameters())
    for name, want in case.description["grad_norms"].items():
        parameter = parameters.get(ours(name))
        gradient = None if parameter is None else parameter.grad
        if want is None:
            yield compared_exactly(f"no gradient: {name}", np.array(gradient is not None), np.array(False))
        elif gradient is None:
            yield Line(f"gradient norm: {name}", float("inf"), _GRADIENT, "has no gradient")
        else:
            yield compared(f"gradient norm: {name}", gradient.norm(), np.array(want), _GRADIENT)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    total = torch.stack([gradient.double().norm() for gradient in gradients]).norm()
    yield compared("total gradient norm", total, np.array(case.description["total_grad_norm"]), _GRADIENT)
    number = np.array(case.description["params_with_grad"])
    yield compared_exactly("tensors with a gradient", np.array(len(gradients)), number)


def run(case: Case) -> Iterator[Line]:
    """A line for every array, loss and gradient of a case, and for the mean, deviation and top of whole arrays."""
    model = model_of(case).eval()
    alone = isinstance(model, MMFormerSegmenter)
    with torch.no_grad():
        found = _evaluated_segmenter(case, model) if alone else _evaluated_system(case, model)  # type: ignore[arg-type]
    model.train()
    step = _trained_segmenter(case, model) if alone else _trained_system(case, model)  # type: ignore[arg-type]
    torch.stack(list(step.losses.values())).sum().backward()
    found.update({f"t_{name}": values for name, values in step.arrays.items()})
    found.update(step.matches)
    found.update(_batch_norm_arrays(case, model))
    for name in case.arrays:
        if _INPUT.match(name):
            yield not_compared(name, "input of the model")
        elif (got := values_of(case, name, found)) is not None:
            yield _line(case, name, got)
        else:
            yield not_compared(name, "nothing of that name is computed here")
    for name, want in case.description.get("stats", {}).items():
        got = values_of(case, name, found) if name in case.arrays else None
        if got is not None and got.is_floating_point():
            values = got.detach().double()
            stats = torch.stack([values.mean(), values.std(unbiased=False), values.abs().max()])
            yield compared(f"{name} (mean, std, max)", stats, np.array(want), 1e-3)
    for name, want in case.description["losses"].items():
        yield compared(f"loss: {name}", step.losses[name], np.array(want), _LOSS)
    total = torch.stack(list(step.losses.values())).sum()
    yield compared("loss: total", total, np.array(case.description["total_loss"]), _LOSS)
    yield from _gradient_lines(case, model)
    counter = model.state_dict()[(segmenter_name if alone else our_name)("layer0.1.num_batches_tracked")]
    yield compared_exactly(
        "batches seen by BatchNorm", counter, np.array(case.description["num_batches_tracked_after"])
    )
