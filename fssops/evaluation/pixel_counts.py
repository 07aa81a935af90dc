"""Integer pixel counts and the scores that follow from them; pure functions, exact under any order of summation."""

from __future__ import annotations

import torch
from torch import Tensor

from fssops.labels import IGNORE
from fssops.protocols import Absent, FalsePositives


def count_pixels(prediction: Tensor, label: Tensor, ways: int, false_positives: FalsePositives = "all") -> Tensor:
    """Count true positives, false positives and false negatives of one query.

    Args:
        prediction: [H, W] integer, 0 background, n = way n.
        label: [H, W] integer of the same values and ``IGNORE``, whose pixels count nowhere.
        ways: N.
        false_positives: "all" counts them always; "present" only for labels that the query's truth shows, as PANet's
            published code does.

    Returns:
        [1 + N, 3] int64; rows background, way 1, ..; columns TP, FP, FN.
    """
    if prediction.shape != label.shape:
        raise ValueError(
            f"count_pixels: prediction must have the label's shape {list(label.shape)}, got {list(prediction.shape)}"
        )
    valid = label != IGNORE
    labels = 1 + ways
    joint = label[valid].long() * labels + prediction[valid].long()
    table = torch.bincount(joint.reshape(-1), minlength=labels * labels).view(labels, labels)  # [truth, predicted]
    true_positives = table.diagonal()
    predicted, present = table.sum(0), table.sum(1)
    counts = torch.stack([true_positives, predicted - true_positives, present - true_positives], dim=1)
    if false_positives == "present":
        counts = torch.where((present > 0)[:, None], counts, torch.zeros_like(counts))
    return counts.cpu()


def count_foreground(prediction: Tensor, label: Tensor) -> Tensor:
    """Count with all ways taken as one foreground: [2, 3] int64, rows background and foreground."""
    binary = torch.where(label == IGNORE, label, (label > 0).to(label.dtype))
    return count_pixels((prediction > 0).long(), binary, 1)


def iou(counts: Tensor) -> Tensor:
    """Return TP / (TP + FP + FN) of counts [..., 3] as float64 [...]; NaN where nothing was counted."""
    return counts[..., 0].double() / counts.sum(-1).double()


def mean_iou(class_iou: Tensor, absent: Absent) -> Tensor:
    """Mean over the last axis, the classes; a class that never appeared makes it NaN or is left out."""
    return class_iou.mean(-1) if absent == "nan" else class_iou.nanmean(-1)
