"""From class and mask logits to semantic, instance and panoptic results.

Sources: Cheng et al., "Per-pixel classification is not all you need", NeurIPS 2021, section 3.4, and the code of
MaskFormer and Mask2Former.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fssops.structures import InstanceResult, PanopticResult, PanopticSegment


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of [N, h, w], pixel centres at half integers (``align_corners=False``), no antialiasing."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def crop_and_resize(maps: Tensor, true_size: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
    """Cut the padding off maps [N, H, W] of the padded size and resize what is left."""
    return resize(maps[:, : true_size[0], : true_size[1]], output_size)


def semantic_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Sum over queries of class probability times mask probability.

    Args:
        class_logits: [Q, C + 1].
        mask_logits: [Q, H, W].

    Returns:
        [C, H, W] float32, not normalised over classes.
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    masks = mask_logits.float().sigmoid()
    return (probabilities.T @ masks.flatten(1)).view(-1, *masks.shape[1:])


class ScoredQueries(NamedTuple):
    """Some queries [K] with a probability [K] and a class [K] of each; a query can occur with several classes."""

    queries: Tensor
    scores: Tensor
    labels: Tensor


def confident_queries(class_logits: Tensor, threshold: float) -> ScoredQueries:
    """Queries that name a class with more than ``threshold`` probability.

    Args:
        class_logits: [Q, C + 1].
        threshold: strict lower bound.
    """
    scores, labels = class_logits.float().softmax(-1).max(-1)
    confident = ((labels != class_logits.shape[-1] - 1) & (scores > threshold)).nonzero()[:, 0]
    return ScoredQueries(confident, scores[confident], labels[confident])


def best_instances(class_logits: Tensor, count: int, classes: Collection[int] | None = None) -> ScoredQueries:
    """The ``count`` best pairs of query and class, best first; "no object" is no class.

    Args:
        class_logits: [Q, C + 1].
        count: pairs to take; fewer where Q * C is less.
        classes: leave out pairs of other classes, after the choice; None leaves none out.
    """
    pairs = best_pairs(class_logits.float().softmax(-1)[:, :-1], count)
    if classes is None:
        return pairs
    wanted = torch.isin(pairs.labels, torch.tensor(sorted(classes), dtype=torch.int64, device=pairs.labels.device))
    return ScoredQueries(*(column[wanted] for column in pairs))


def best_pairs(probabilities: Tensor, count: int) -> ScoredQueries:
    """The ``count`` largest of probabilities [Q, C], best first; fewer where Q * C is less."""
    scores, flat = probabilities.flatten().topk(min(count, probabilities.numel()))
    return ScoredQueries(flat // probabilities.shape[1], scores, flat % probabilities.shape[1])


def instances(scores: Tensor, labels: Tensor, mask_logits: Tensor, rows: Tensor) -> InstanceResult:
    """Binary masks, and scores multiplied by the mean mask probability inside each mask.

    Args:
        scores: [K] class probabilities.
        labels: [K].
        mask_logits: [N, H, W] of the queries that occur.
        rows: [K], the row of ``mask_logits`` of each instance.
    """
    masks = mask_logits > 0
    inside = (mask_logits.float().sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
    final = scores * inside[rows]
    order = final.argsort(descending=True, stable=True)
    return InstanceResult(final[order], labels[order], masks[rows[order]])


def panoptic_map(
    scores: Tensor,
    labels: Tensor,
    mask_logits: Tensor,
    *,
    things: Collection[int],
    overlap_threshold: float,
    cut_at_half: bool,
) -> PanopticResult:
    """Give every pixel to the query with the highest product of class and mask probability, and drop torn masks.

    Queries are visited in their order. A query is dropped if it won no pixel, or less than ``overlap_threshold`` of
    its own mask (probability at least 0.5). Segments of one stuff class are merged.

    Args:
        scores: [K] class probabilities of the confident queries.
        labels: [K].
        mask_logits: [K, H, W].
        things: classes whose segments stay apart.
        overlap_threshold: least share of a mask that must be won.
        cut_at_half: a segment also ends where its mask probability falls below 0.5 (Mask2Former; MaskFormer does not).
    """
    size = mask_logits.shape[-2:]
    segment_ids = torch.zeros(size, dtype=torch.int32, device=mask_logits.device)
    segments: list[PanopticSegment] = []
    if len(scores) == 0:
        return PanopticResult(segment_ids, segments)
    masks = mask_logits.float().sigmoid()
    winner = (scores[:, None, None] * masks).argmax(0)
    sure = masks >= 0.5
    won_areas = torch.bincount(winner.flatten(), minlength=len(scores)).tolist()
    mask_areas = sure.flatten(1).sum(1).tolist()
    merged: dict[int, int] = {}
    for index, label in enumerate(labels.tolist()):
        won, area = won_areas[index], mask_areas[index]
        if won == 0 or area == 0:
            continue
        segment = winner == index
        if cut_at_half:
            segment &= sure[index]
            if not segment.any():
                continue
        if won / area < overlap_threshold:
            continue
        thing = label in things
        if not thing and label in merged:
            segment_ids[segment] = merged[label]
            continue
        segments.append(PanopticSegment(len(segments) + 1, label, thing, float(scores[index])))
        segment_ids[segment] = len(segments)
        if not thing:
            merged[label] = len(segments)
    return PanopticResult(segment_ids, segments)


def general_label_map(scores: Tensor, labels: Tensor, mask_logits: Tensor) -> Tensor:
    """Class of the query with the highest product of class and mask probability at each pixel.

    MaskFormer's "general" inference read as a semantic map: pixels are assigned to queries, not summed over them.

    Args:
        scores: [K] class probabilities of the queries that name a class.
        labels: [K].
        mask_logits: [K, H, W].

    Returns:
        [H, W] int64; -1 everywhere if K is 0.
    """
    if len(scores) == 0:
        return torch.full(mask_logits.shape[-2:], -1, dtype=torch.int64, device=mask_logits.device)
    return labels[(scores[:, None, None] * mask_logits.float().sigmoid()).argmax(0)]
