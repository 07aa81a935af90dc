"""Bounding boxes as support annotation."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def largest_instance_box(foreground: np.ndarray, instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Box annotation of PANet (``get_bbox``).

    Args:
        foreground: bool [H, W], the class's dense mask.
        instances: int [H, W], instance numbers, 0 none; only what lies in ``foreground`` counts. Foreground pixels
            without an instance number are not boxed, as published.

    Returns:
        (fg, bg), float32 [H, W] each: fg is 1 in the filled tight box of the instance with the most pixels (the lowest
        number of equals), bg is 1 outside the boxes of all instances. Pixels in other instances' boxes are neither.
        Without any instance fg is 0 and bg is 1 everywhere (the published code fails there).
    """
    inside = np.where(foreground, instances, 0)
    fg = np.zeros(foreground.shape, dtype=np.float32)
    bg = np.ones(foreground.shape, dtype=np.float32)
    numbers, areas = np.unique(inside[inside > 0], return_counts=True)
    if not len(numbers):
        return fg, bg
    fg[_box(inside == numbers[areas.argmax()])] = 1.0
    for number in numbers:
        bg[_box(inside == number)] = 0.0
    return fg, bg


def component_boxes(label: np.ndarray, class_id: int, ignore: int = 255) -> np.ndarray:
    """Box annotation of BAM and MSANet (``ann_type: bbox``).

    Every connected component (8 neighbours) of the class becomes a filled rectangle that reaches one pixel beyond its
    right and lower edge (their x + w and y + h are drawn inclusively); ignored pixels stay ignored.

    Args:
        label: [H, W] of class ids.
        class_id: the class to box.
        ignore: value that is kept.

    Returns:
        A copy of ``label`` whose class region is the union of the rectangles.
    """
    numbered, _ = ndimage.label(label == class_id, structure=np.ones((3, 3), dtype=int))
    result = np.where(label == class_id, 0, label).astype(label.dtype)
    for rows, columns in ndimage.find_objects(numbered):
        result[rows.start : rows.stop + 1, columns.start : columns.stop + 1] = class_id
    result[label == ignore] = ignore
    return result
