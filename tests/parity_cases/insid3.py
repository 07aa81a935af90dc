"""Cases of INSID3: some references and a target, from random weights of a vision transformer; every step on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import fssops
from fssops import ops
from fssops.models.backbones.vit import VIT
from fssops.models.insid3 import INSID3, INSID3Support
from fssops.models.insid3.aggregation import score_clusters
from fssops.models.insid3.clustering import average_linkage
from fssops.models.insid3.debiasing import SHORTEST, unit
from fssops.models.insid3.matching import backward_votes, feature_masks, forward_matches
from parity_cases.case import Array, Case, CaseError, Line, compared, compared_exactly, not_compared, summary_of
from parity_cases.vit import form_of, normalised, official_weights

ALL_DISTANCES = 3.0


def recognise(description: dict[str, Any]) -> bool:
    """Whether a case.json is one of INSID3's."""
    return str(description.get("model", "")).startswith("INSID3")


def _packed(mask: Tensor) -> Array:
    return np.packbits(mask.numpy().astype(np.uint8))


def _resized(case: Case, name: str, side: int) -> tuple[Array, Array]:
    """An image at the encoder's size as Pillow makes it, and as the case holds it."""
    made = np.asarray(Image.fromarray(case.arrays[f"{name}.image"]).resize((side, side), Image.Resampling.BILINEAR))
    return made, case.arrays.get(f"{name}.resized", made)


def model_of(case: Case) -> INSID3:
    """The model of a case with its options and weights."""
    config = case.description["config"]
    backbone = form_of(case.description)
    if backbone is None:
        raise CaseError(f"{case.folder}: case must name a backbone among {', '.join(VIT)}, got {case.name}")
    model = fssops.create_model(
        "insid3",
        backbone=backbone,
        components=config["svd_components"],
        cluster_similarity=config["tau"],
        merge_threshold=config["merge_threshold"],
        refinement="crf" if "crf" in str(config.get("mask_refiner", "")).lower() else "none",
        behaviour="published",
    )
    assert isinstance(model, INSID3)
    fssops.load_weights(model, official_weights(case, VIT[backbone]))
    return model.eval()


def _both_maxima(target: Tensor, support: INSID3Support) -> tuple[Tensor, Tensor]:
    """[K, P] each: largest cosine with a reference position inside the mask and outside."""
    foreground = support.foreground[0, 0]
    references = support.references[0, 0]
    best = ops.cosine_correlation(
        target.T[None, :, :, None],
        references.transpose(1, 2)[None, ..., None],
        torch.stack([foreground, ~foreground])[None, ..., None],
        reduction="max",
        relu=False,
        eps=SHORTEST,
        eps_rule="clamp_norms",
    )
    return best[0, 0, ..., 0], best[0, 1, ..., 0]


def _basis_arrays(model: INSID3, grid: tuple[int, int], raw: Tensor) -> dict[str, Tensor]:
    tokens = unit(raw).double()
    centred = tokens - tokens.mean(0)
    content = model.basis(grid).double()
    values = torch.linalg.svdvals(centred)
    return {
        "noise_features.sample": summary_of(raw.T.contiguous(), "sample"),
        "basis.singular_values": values[: model.components + 8],
        "basis.diag": 1 - (content**2).sum(1),
    }


def _raw(model: INSID3, images: Tensor) -> Tensor:
    return model.backbone(images)[model.backbone.taps[-1]]


def computed(case: Case, model: INSID3) -> dict[str, Any]:
    """Everything that a case of INSID3 may hold, by the case's names."""
    config = case.description["config"]
    side = int(config["image_size"])
    shots = int(config["shots"])
    names = [*(f"ref{shot}" for shot in range(shots)), "target"]
    found: dict[str, Any] = {}
    images = []
    for name in names:
        found[f"{name}.resized"], stored = _resized(case, name, side)
        images.append(normalised(torch.from_numpy(np.array(stored))))
        found[f"{name}.pixel_values.stats"] = summary_of(images[-1], "stats")
    masks = [case.tensor(f"ref{shot}.mask")[None, None].float() > 0 for shot in range(shots)]
    foreground = torch.cat([F.interpolate(mask.float(), size=(side, side), mode="nearest") for mask in masks], 1)
    foreground = foreground[:, None]

    found["features"] = torch.cat([_raw(model, image) for image in images]).contiguous()
    supports, target = model.encode(torch.cat(images[:-1])), model.encode(images[-1])
    grid = (int(target["tokens"].shape[1]), int(target["tokens"].shape[2]))
    black = normalised(torch.zeros(side, side, 3, dtype=torch.uint8))
    if model.components:
        found.update(_basis_arrays(model, grid, _raw(model, black)[0].flatten(1).T))
    support = model.summarise(supports, foreground, 1 - foreground)
    found["ref_mask_feat"] = support.foreground[0, 0].unflatten(1, grid)
    # Ours are coordinates along the directions that are left; the same vectors in C channels:
    content = model.basis(grid) if model.components else torch.eye(target["tokens"].shape[-1])
    everything = torch.cat([supports["debiased"], target["debiased"]])
    found["debiased"] = (everything @ content.T).permute(0, 3, 1, 2)
    found["prototype"] = content @ support.prototypes[0, 0]

    debiased, tokens = target["debiased"][0].flatten(0, 1), target["tokens"][0].flatten(0, 1)
    candidates, similarity = model.candidates(support, 0, 0, debiased)
    found["sim_fwd"] = similarity.unflatten(0, grid)
    found["forward"] = forward_matches(similarity).unflatten(0, grid)
    inside, outside = _both_maxima(debiased, support)
    found["max_fg"], found["max_bg"] = inside.unflatten(1, grid), outside.unflatten(1, grid)
    votes = backward_votes(debiased, support.references[0, 0], support.foreground[0, 0], support.compared[0, 0])
    found["votes"] = votes.unflatten(0, grid)
    found["candidates"] = candidates.unflatten(0, grid)

    target = model.query_features(target)
    found["cluster_labels"] = target["labels"][0]
    found["merge_heights"] = average_linkage(tokens, ALL_DISTANCES)[1]
    scores = model.score_way(support, 0, 0, {name: value[0] for name, value in target.items()})
    found["mask_low"] = (scores > -torch.inf).unflatten(0, grid)
    if bool(candidates.any()):
        found.update(_cluster_arrays(case, model, target["labels"][0].flatten(), support, tokens, debiased, candidates))
    height, width = case.arrays["target.image"].shape[:2] if config.get("resize_to_orig_size", True) else (side, side)
    for name, size in (("mask_S", (side, side)), ("mask_final", (height, width))):
        found[name] = _packed(model.match(support, target, size)[0, 0].argmax(0) == 1)
    return found


def _cluster_arrays(
    case: Case,
    model: INSID3,
    labels: Tensor,
    support: INSID3Support,
    tokens: Tensor,
    debiased: Tensor,
    candidates: Tensor,
) -> dict[str, Tensor]:
    """The arrays of clusters in the case's own numbering, where it is a renaming of ours."""
    theirs = case.arrays.get("cluster_labels")
    if theirs is None:
        return {}
    their_labels = torch.from_numpy(theirs.astype(np.int64)).flatten()
    if not same_partition(labels.numpy(), their_labels.numpy()):
        return {}
    scores = score_clusters(their_labels, tokens, debiased, support.prototypes[0, 0], candidates, every=True)
    return {
        "cluster.area": scores.area,
        "cluster.hits": scores.hits,
        "cluster.proto_sim": scores.seed_similarity,
        "cluster.cross": scores.cross,
        "cluster.intra": scores.intra,
        "cluster.weight": scores.weight,
        "cluster.score": scores.score,
        "seed": scores.seed[None],
    }


def same_partition(first: Array, second: Array) -> bool:
    """Whether labels of one are a renaming of the other's."""
    pairs = len(np.unique(np.stack([first.ravel(), second.ravel()]), axis=1).T)
    return pairs == len(np.unique(first)) == len(np.unique(second))


def run(case: Case) -> Iterator[Line]:
    """Compare every array of the case."""
    model = model_of(case)
    with torch.inference_mode():
        found = computed(case, model)
        if "probe.masks" in case.arrays:
            probes = case.tensor("probe.masks", torch.float32)
            found["probe.down"] = feature_masks(probes, probes.shape[-1] // case.arrays["probe.down"].shape[-1])
    heights = case.tolerance("merge_heights", 1e-5)
    inputs = case.inputs()
    for name, want in case.arrays.items():
        if name in inputs:
            yield not_compared(name, "input of the model")
        elif name not in found:
            yield not_compared(name, "nothing of that name is computed here")
        elif name == "cluster_labels":
            same = same_partition(found[name].numpy(), want)
            yield Line(name, 0.0 if same else 1.0, 0.0, "partitions differ")
        elif name == "merge_heights":
            same = found[name].shape == want.shape
            error = float(np.abs(found[name].numpy() - want).max()) if same else float("inf")
            yield Line(name, error, heights, "largest difference")
        elif want.dtype.kind in "iub":
            yield compared_exactly(name, found[name], want)
        else:
            yield compared(name, found[name], want, case.tolerance_of(name, 2e-5))
