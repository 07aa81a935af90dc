"""Scribbles as support annotation: a robot that draws along the skeleton of a mask.

The steps are those of the DAVIS scribble robot (Caelles et al., "The 2018 DAVIS Challenge on Video Object
Segmentation"), with which PANet's ScribbleAugAuto was made: opening, skeleton, graph of 8-neighbours without cycles,
longest path, Bezier curve, one pixel wide. The robot draws no random numbers. Two things differ: the skeleton is found
by thinning (Zhang and Suen, "A Fast Parallel Algorithm for Thinning Digital Patterns", CACM 1984) instead of a medial
axis, and a mask too small for any path gets its deepest pixel instead of nothing.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage, sparse, special
from scipy.sparse import csgraph

from fssops.labels import IGNORE

MAX_RADIUS = 16.0
"""Largest radius, in pixels, of the disk that opens a mask."""
RELATIVE_RADIUS = 0.15
"""Radius of the disk, as a share of half the side of a square of the mask's area."""
MIN_NODES = 4
"""Skeleton pieces with fewer pixels are left out."""
CURVE_POINTS = 1000
"""Points at which the Bezier curve is evaluated."""


def _opened(mask: np.ndarray) -> np.ndarray:
    """Opening by the largest disk, of the robot's radii, that leaves something; the mask itself below radius 1."""
    radius = min(MAX_RADIUS, RELATIVE_RADIUS * math.sqrt(mask.sum()) / 2.0)
    depth = ndimage.distance_transform_edt(mask)
    while radius > 1.0:
        # Erosion by a digital disk keeps pixels farther from the outside than its radius.
        core = depth > radius
        if core.any():
            return np.asarray(ndimage.distance_transform_edt(~core) <= radius)
        radius *= 0.9
    return mask


def _thinning_tables() -> tuple[np.ndarray, np.ndarray]:
    """For each of 256 neighbourhoods (bit i = neighbour P(i+2), clockwise from north): may it go in either pass?"""
    first, second = np.zeros(256, dtype=bool), np.zeros(256, dtype=bool)
    for code in range(256):
        p = [code >> i & 1 for i in range(8)]
        crossings = sum(p[i] == 0 and p[(i + 1) % 8] == 1 for i in range(8))
        if 2 <= sum(p) <= 6 and crossings == 1:
            north, east, south, west = p[0], p[2], p[4], p[6]
            first[code] = not (north and east and south) and not (east and south and west)
            second[code] = not (north and east and west) and not (north and south and west)
    return first, second


_PASSES = _thinning_tables()
_NEIGHBOURS = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def skeleton(mask: np.ndarray) -> np.ndarray:
    """Thin a mask to lines one pixel wide that keep its connections (Zhang-Suen): bool [H, W] -> bool [H, W]."""
    field = np.pad(mask.astype(np.uint8), 1)
    inner = field[1:-1, 1:-1]
    height, width = inner.shape
    codes = np.empty_like(inner)
    removed = True
    while removed:
        removed = False
        for table in _PASSES:
            codes.fill(0)
            for bit, (dy, dx) in enumerate(_NEIGHBOURS):
                codes |= field[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] << bit
            gone = table[codes] & (inner == 1)
            if gone.any():
                removed = True
                inner[gone] = 0
    return inner.astype(bool)


def longest_paths(lines: np.ndarray, min_nodes: int = MIN_NODES) -> list[np.ndarray]:
    """The longest path through each connected piece of a skeleton.

    Cycles are cut at their longest step (minimum spanning tree), then the two ends farthest apart are found by two
    searches, which is exact in a tree.

    Args:
        lines: bool [H, W].
        min_nodes: smaller pieces are left out.

    Returns:
        int [n, 2] arrays of (x, y), one a piece, in the order of the piece's first pixel by rows.
    """
    points = np.argwhere(lines)
    if not len(points):
        return []
    number = np.full((lines.shape[0] + 2, lines.shape[1] + 2), -1)
    number[points[:, 0] + 1, points[:, 1] + 1] = np.arange(len(points))
    starts, ends, lengths = [], [], []
    for dy, dx in _NEIGHBOURS[1:5]:  # each pair once
        other = number[points[:, 0] + 1 + dy, points[:, 1] + 1 + dx]
        neighbours = np.flatnonzero(other >= 0)
        starts.append(neighbours)
        ends.append(other[neighbours])
        lengths.append(np.full(len(neighbours), math.hypot(dy, dx)))
    edges = (np.concatenate(starts), np.concatenate(ends))
    graph = sparse.csr_array((np.concatenate(lengths), edges), shape=(len(points), len(points)))
    tree = csgraph.minimum_spanning_tree(graph)
    count, piece = csgraph.connected_components(tree, directed=False)
    paths = []
    for index in range(count):
        members = np.flatnonzero(piece == index)
        if len(members) < min_nodes:
            continue
        far = _farthest(tree, members, members[0])[0]
        end, before = _farthest(tree, members, far)
        path = [end]
        while path[-1] != far:
            path.append(int(before[path[-1]]))
        paths.append(points[path][:, ::-1])
    return paths


def _farthest(tree: sparse.csr_array, members: np.ndarray, start: int) -> tuple[int, np.ndarray]:
    distance, before = csgraph.dijkstra(tree, directed=False, indices=int(start), return_predecessors=True)
    return int(members[distance[members].argmax()]), before


def bezier(points: np.ndarray, count: int = CURVE_POINTS) -> np.ndarray:
    """Bezier curve with every path pixel as control point: [n, 2] -> float [count, 2].

    Bernstein weights are formed from logarithms: the binomials of long paths leave the range of floats.
    """
    degree = len(points) - 1
    i = np.arange(degree + 1)
    t = np.linspace(0.0, 1.0, count)[1:-1, None]
    binomial = special.gammaln(degree + 1) - special.gammaln(i + 1) - special.gammaln(degree - i + 1)
    weights = np.exp(binomial + i * np.log(t) + (degree - i) * np.log1p(-t))
    return np.concatenate([points[:1], weights @ points, points[-1:]]).astype(float)


def draw_curve(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Join points (x, y) by lines one pixel wide, clipped to ``shape``: bool [H, W]."""
    drawn = np.zeros(shape, dtype=bool)
    steps = np.abs(np.diff(points, axis=0)).max(initial=0.0)
    # As many points a segment as the longest needs: neighbours are then at most a pixel apart in x and y.
    t = np.linspace(0.0, 1.0, max(2, math.ceil(steps) + 1))[:, None, None]
    x, y = np.moveaxis(np.rint((1 - t) * points[:-1] + t * points[1:]).astype(int), -1, 0)
    drawn[y.clip(0, shape[0] - 1), x.clip(0, shape[1] - 1)] = True
    return drawn


def scribble(mask: np.ndarray) -> np.ndarray:
    """Draw the robot's strokes over one mask.

    Args:
        mask: bool [H, W].

    Returns:
        bool [H, W]; lines one pixel wide, one a skeleton piece. A smoothed line may cut a corner outside the mask.
        At least one pixel where ``mask`` is not empty, none where it is.
    """
    mask = mask.astype(bool)
    if not mask.any():
        return np.zeros(mask.shape, dtype=bool)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    # The border of zeros makes the picture's edge an outside, as in the robot, so lines keep off it.
    inner = np.pad(mask[window], 1)
    drawn = np.zeros(inner.shape, dtype=bool)
    for path in longest_paths(skeleton(_opened(inner))):
        drawn |= draw_curve(bezier(path), inner.shape)
    if not (drawn & inner).any():
        depth = ndimage.distance_transform_edt(inner)
        drawn[np.unravel_index(depth.argmax(), depth.shape)] = True
    result = np.zeros(mask.shape, dtype=bool)
    result[window] = drawn[1:-1, 1:-1]
    return result


def scribble_map(background: np.ndarray, objects: list[np.ndarray]) -> np.ndarray:
    """Strokes over the background and every object of an image, in the values of PANet's ScribbleAugAuto.

    Args:
        background: bool [H, W].
        objects: one bool [H, W] an object; at most 254, smaller ones drawn last.

    Returns:
        uint8 [H, W]: 0 background stroke, i + 1 stroke of ``objects[i]``, 255 unlabelled.

    Raises:
        ValueError: more than 254 objects.
    """
    if len(objects) >= IGNORE:
        raise ValueError(f"scribble_map: objects must be at most {IGNORE - 1}, got {len(objects)}")
    result = np.full(background.shape, IGNORE, dtype=np.uint8)
    result[scribble(background)] = 0
    for number, mask in sorted(enumerate(objects, start=1), key=lambda item: -int(item[1].sum())):
        result[scribble(mask)] = number
    return result


def choose_stroke(foreground: np.ndarray, strokes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """PANet's scribble foreground: one stroke, chosen at random, of those that lie on the class's dense mask.

    Args:
        foreground: bool [H, W], the class's dense mask.
        strokes: uint8 [H, W], a scribble map.
        rng: decides among the stroke numbers present, all equally likely.

    Returns:
        bool [H, W]; empty where no stroke lies on the mask.
    """
    inside = np.where(foreground & (strokes != IGNORE), strokes, 0)
    numbers = np.unique(inside[inside > 0])
    if not len(numbers):
        return np.zeros(foreground.shape, dtype=bool)
    return np.asarray(inside == numbers[int(rng.integers(len(numbers)))])
