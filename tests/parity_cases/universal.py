"""What the cases of MaskFormer and Mask2Former have in common: inputs, configuration, and how arrays are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fssops.engine.optimizers import parameter_groups
from fssops.engine.settings import OptimSettings
from fssops.losses.mask_criterion import Matches
from fssops.models.backbones.build import BACKBONES, swin_row
from fssops.models.backbones.swin import SWIN, SwinForm
from fssops.models.pixel_decoders.features import PixelFeatures
from fssops.models.universal import UniversalModel
from fssops.ops import AttentionMask
from fssops.structures import ImageBatch, MaskPredictions, MaskTargets, SegmentationResult
from fssops.weights.layout import Renaming
from parity_cases.case import Case, Line, compared, compared_exactly, compared_share, not_compared

FLOATS = 1e-3
GRADIENTS = 2e-2
GRADIENT_NORM = 1e-3
SAME_PIXELS = 0.998
SWAPPABLE = 1e-4
"""The words of the cases' ``tolerances``, as numbers."""

MATCHED = ("inf/scores", "inf/labels", "inf/masks", "inf/mask_areas")
"""Results of the video system, whose rows are matched before they are compared."""

Computed = dict[str, Tensor | np.ndarray[Any, Any] | float]


def call_order(heads: int) -> list[int]:
    """Positions of the heads in the order the published criterion visits them: the final one first."""
    return [heads - 1, *range(heads - 1)]


def unpacked(bits: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
    """Booleans [..., length] of bits packed along the last axis."""
    return np.unpackbits(bits, axis=-1)[..., :length].astype(bool)


@contextmanager
def watched_masks(decoder: nn.Module, take: Callable[[int, AttentionMask], None]) -> Iterator[None]:
    """Hand the cross-attention mask of every decoder layer over while it is used."""
    handles = [
        layer.register_forward_pre_hook(lambda _, arguments, index=index: take(index, arguments[4]))
        for index, layer in enumerate(decoder.layers)  # type: ignore[arg-type]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def batch_of(case: Case) -> ImageBatch:
    """The case's images with their targets."""
    images, targets = [], []
    for index in range(len(case.description["sizes"])):
        image = case.tensor(f"image{index}")
        height, width = image.shape[-2:]
        masks = torch.from_numpy(unpacked(case.arrays[f"gt_masks{index}"], height * width))
        images.append(image)
        targets.append(MaskTargets(case.tensor(f"gt_labels{index}"), masks.view(-1, height, width)))
    return ImageBatch(images, targets, [(int(h), int(w)) for h, w in case.description["out_sizes"]])


def shared_options(case: Case) -> dict[str, Any]:
    """Options of :class:`UniversalConfig` from ``config_used``."""
    used = case.description["config_used"]
    former, head, test = used["MODEL.MASK_FORMER"], used["MODEL.SEM_SEG_HEAD"], used["MODEL.MASK_FORMER"]["TEST"]
    things = case.description.get("num_things_classes")
    options: dict[str, Any] = {
        "backbone": backbone_of(used),
        "num_classes": head["NUM_CLASSES"],
        "num_queries": former["NUM_OBJECT_QUERIES"],
        "channels": former["HIDDEN_DIM"],
        "mask_channels": head["MASK_DIM"],
        "heads": former["NHEADS"],
        "dropout": former["DROPOUT"],
        "drop_path": 0.0,
        "size_divisor": former["SIZE_DIVISIBILITY"],
        "no_object_weight": former["NO_OBJECT_WEIGHT"],
        "mask_weight": former["MASK_WEIGHT"],
        "dice_weight": former["DICE_WEIGHT"],
        "object_threshold": test["OBJECT_MASK_THRESHOLD"],
        "overlap_threshold": test["OVERLAP_THRESHOLD"],
        "detections": used["TEST.DETECTIONS_PER_IMAGE"],
        "resize_before_inference": test["SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE"],
        "tasks": tuple(
            task
            for task, default in (("semantic", True), ("instance", False), ("panoptic", False))
            if test.get(f"{task.upper()}_ON", default)
        ),
    }
    if things:  # "labels 0..79 are things"
        options["things"] = tuple(range(int(things.split("..")[1].split()[0]) + 1))
    return options


def backbone_of(used: Mapping[str, Any]) -> str:
    """Our name of the backbone of a detectron2 configuration."""
    kind = used["MODEL.BACKBONE.NAME"]
    if "Swin" in kind:
        swin = used["MODEL.SWIN"]
        form = SwinForm(swin["EMBED_DIM"], tuple(swin["DEPTHS"]), tuple(swin["NUM_HEADS"]), swin["WINDOW_SIZE"])
        for name, known in SWIN.items():
            if known == form:
                return name
        BACKBONES["swin_of_case"] = swin_row(form)
        return "swin_of_case"
    return f"resnet{used['MODEL.RESNETS']['DEPTH']}" + ("_deeplab" if "deeplab" in kind else "")


def backbone_arrays(case: Case, features: Mapping[str, Tensor], decoded: PixelFeatures) -> Computed:
    """Every k-th channel of the backbone's and the pixel decoder's maps, by the case's names."""
    strides = case.description["strides"]
    found: Computed = {f"backbone_{name}": value[:, :: strides[name]] for name, value in features.items()}
    found["pixdec_mask_features"] = decoded.mask_features[:, :: strides["mask_features"]]
    return found


def all_mask_logits(predictions: MaskPredictions) -> Tensor:
    """[heads, B, Q, T, h, w], which only a comparison wants."""
    heads, images = predictions.class_logits.shape[:2]
    with torch.no_grad():
        return torch.stack(
            [torch.stack([predictions.mask_logits(b, head) for b in range(images)]) for head in range(heads)]
        )


def assignment_arrays(matches: Matches) -> Computed:
    """``assign{b}`` [heads, 2, n] in call order."""
    order = call_order(len(matches))
    return {
        f"assign{image}": torch.stack(
            [torch.stack((matches[head][image].queries, matches[head][image].targets)) for head in order]
        )
        for image in range(len(matches[0]))
    }


def gradient_arrays(case: Case, model: UniversalModel, names: Renaming) -> Computed:
    """Gradients and their norms after ``backward``; and the first optimiser step, where the case has one."""
    parameters = dict(model.named_parameters())
    ours = [parameters[names.ours(name) or name] for name in case.description["params"]]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in ours]
    norms = torch.stack([gradient.double().norm() for gradient in gradients])
    total = norms.norm()
    found: Computed = {"grad_norms": norms, "grad_norm_total": total}
    stepped, settings = "step1_delta_norms" in case.arrays, optimiser_settings(case)
    scale = min(1.0, settings.clip_norm / (float(total) + 1e-6)) if stepped else 1.0
    for name, gradient in zip(case.description["params"], gradients, strict=True):
        if f"grad/{name}" in case.arrays:
            found[f"grad/{name}"] = gradient * scale
    if stepped:
        before = [p.detach().clone() for p in ours]
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        groups = parameter_groups(model, settings)
        for group in groups:
            del group["names"]
        torch.optim.AdamW(groups, lr=settings.lr).step()
        deltas = [(p.detach() - b).double() for p, b in zip(ours, before, strict=True)]
        found["step1_delta_norms"] = torch.stack([delta.norm() for delta in deltas])
        found["step1_delta_sums"] = torch.stack([delta.sum() for delta in deltas])
    return found


def optimiser_settings(case: Case) -> OptimSettings:
    """What ``SOLVER`` of the case says, in our words."""
    used = case.description["config_used"]
    return OptimSettings(
        name="adamw",
        lr=used["SOLVER.BASE_LR"],
        weight_decay=used["SOLVER.WEIGHT_DECAY"],
        weight_decay_norm=used["SOLVER.WEIGHT_DECAY_NORM"],
        weight_decay_embedding=used["SOLVER.WEIGHT_DECAY_EMBED"],
        backbone_lr_scale=used["SOLVER.BACKBONE_MULTIPLIER"],
        clip_norm=used["SOLVER.CLIP_GRADIENTS"]["CLIP_VALUE"],
    )


def group_lines(case: Case, model: UniversalModel, names: Renaming) -> Iterator[Line]:
    """Learning rate and weight decay of every parameter."""
    wanted = case.description.get("param_groups")
    if wanted is None:
        return
    got = {
        name: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, optimiser_settings(case))
        for name in group["names"]
    }
    pairs = [(got.get(names.ours(name) or name, (0.0, 0.0)), (lr, decay)) for name, lr, decay in wanted]
    mine, theirs = np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])
    differ = np.abs(mine - theirs) > 1e-12
    yield compared_exactly("param_groups (lr, weight decay)", differ, np.zeros_like(differ))


def result_arrays(case: Case, results: list[SegmentationResult]) -> Computed:
    """The inferences, by the case's names; instance masks packed."""
    found: Computed = {}
    step = case.description["strides"]["sem"]
    for index, result in enumerate(results):
        if result.semantic is not None:
            found[f"inf/sem_seg{index}"] = result.semantic.scores[::step]
            found[f"inf/sem_argmax{index}"] = result.semantic.label_map
        if result.panoptic is not None:
            found[f"inf/panoptic{index}"] = result.panoptic.segment_ids
            found[f"inf/panoptic_info{index}"] = np.array(
                [[s.id, int(s.is_thing), s.label] for s in result.panoptic.segments], dtype=np.int64
            ).reshape(-1, 3)
    return found


def instance_lines(case: Case, index: int, result: SegmentationResult) -> Iterator[Line]:
    """Instances matched by class and mask; rows of almost equal score may swap or drop at the border."""
    wanted = case.arrays.get(f"inf/inst_scores{index}")
    if wanted is None or result.instance is None:
        return
    found = result.instance
    masks = found.masks.flatten(1).numpy()
    want_masks = unpacked(case.arrays[f"inf/inst_masks{index}"], masks.shape[1])
    ours = found.scores.numpy(), found.labels.numpy(), masks
    worst, lost, pixels = matched_rows(ours, (wanted, case.arrays[f"inf/inst_classes{index}"], want_masks))
    yield Line(f"inf/inst_scores{index}", worst, FLOATS, "of max|b|")
    yield Line(f"inf/inst_classes{index}", float(lost), 0.0, "rows without a counterpart")
    yield Line(f"inf/inst_masks{index}", pixels, 1 - SAME_PIXELS, "of the pixels of a mask differ")
    yield Line(f"inf/inst_areas{index}", pixels, 1 - SAME_PIXELS, "compared with the masks")


Rows = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]
"""Scores [K], classes [K] and flattened bool masks [K, n] of instances."""


def matched_rows(ours: Rows, theirs: Rows) -> tuple[float, int, float]:
    """Match instances by class and mask.

    Returns:
        largest difference of scores relative to the best, rows of theirs without a counterpart (those at the border of
        the list aside), and the largest share of a mask's pixels that differ.
    """
    (scores, labels, masks), (wanted, want_classes, want_masks) = ours, theirs
    free, worst, lost, pixels = set(range(len(labels))), 0.0, 0, 0.0
    border = float(wanted.min()) if len(wanted) else 0.0
    for row, score in enumerate(wanted):
        same = [k for k in free if labels[k] == want_classes[row]]
        best = min(same, key=lambda k: (masks[k] != want_masks[row]).sum(), default=None)
        if best is None or (masks[best] != want_masks[row]).mean() > 1 - SAME_PIXELS:
            lost += int(score - border > SWAPPABLE)
            continue
        free.discard(best)
        pixels = max(pixels, float((masks[best] != want_masks[row]).mean()))
        worst = max(worst, abs(float(scores[best]) - float(score)))
    top = float(np.abs(wanted).max()) if len(wanted) else 1.0
    return worst / top, lost, pixels


def line_of(name: str, got: Any, want: np.ndarray[Any, Any], case: Case) -> Line:
    """Compare one array by the rule for its name."""
    if name.startswith(("assign", "attn_mask", "self_attn_mask", "grad_rows/", "inf/panoptic_info")):
        return compared_exactly(name, got, want)
    if name.startswith(("inf/sem_argmax", "inf/panoptic")):
        return compared_share(name, got, want, SAME_PIXELS)
    if name.startswith("grad/") or name == "grad_norms":
        return compared(name, got, want, GRADIENTS)
    if name == "grad_norm_total":
        return compared(name, got, want, GRADIENT_NORM)
    if name == "step1_delta_norms":
        return compared(name, got, want, GRADIENTS)
    if name == "step1_delta_sums":  # almost a sign step: entries with tiny gradients flip and their sum is noisy
        norms = np.maximum(case.arrays["step1_delta_norms"], 1e-30)
        return compared(f"{name} / norms", np.asarray(got) / norms, want / norms, 0.5)
    return compared(name, got, want, FLOATS)


def is_input(name: str) -> bool:
    """Whether an array is given to the model: images, targets, weights, draws."""
    return name.startswith(("image", "gt_", "weights/", "pts_match", "pts_over", "pts_rand", "rng_dn"))


def lines(case: Case, found: Computed, results: list[SegmentationResult]) -> Iterator[Line]:
    """A line for every array of the case, in its order."""
    for index, result in enumerate(results):
        yield from instance_lines(case, index, result)
    for name, want in case.arrays.items():
        if name.startswith(("inf/inst_", "pts_final")) or name in MATCHED:
            continue
        if is_input(name):
            yield not_compared(name, "input of the model")
        elif name in found:
            yield line_of(name, found[name], want, case)
        else:
            yield not_compared(name, "nothing of that name is computed here")
