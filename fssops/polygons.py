"""Outlines of masks as polygons."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def polygons(mask: np.ndarray) -> list[np.ndarray]:
    """The outlines of a mask, one polygon a connected part.

    A hole is joined to the outline around it by a seam of no width, so that drawing the polygons by COCO's rule gives
    the mask back, pixel by pixel.

    Args:
        mask: bool [H, W].

    Returns:
        arrays [n, 2] float64 of (x, y) in pixels; pixel (0, 0) covers 0..1 in both.
    """
    from contourpy import FillType, contour_generator

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    inside = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(float), 1)
    x, y = (np.arange(side) - 0.5 + start for side, start in zip(inside.shape[::-1], (left, top), strict=True))
    lines = contour_generator(x, y, inside, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    found = []
    for points, starts in zip(*lines, strict=True):
        rings = [_corners(points[start:end]) for start, end in pairwise(starts)]
        seams = [part for hole in rings[1:] for part in (hole, hole[:1], rings[0][:1])]
        found.append(np.concatenate([rings[0], *([rings[0][:1]] if seams else []), *seams]))
    return found


def _corners(ring: np.ndarray) -> np.ndarray:
    """A closed ring [n, 2] without its repeated end and the points that lie on a straight line."""
    ring = ring[:-1].astype(np.float64)
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]  # type: ignore[no-any-return]
