"""The noises of piloted masks: what the map of an object looks like to the query that is told it.

Point noise flips single cells and is drawn anew at each decoder layer. The others change the map at the finest level
once, and the coarser levels are read from it. ``published`` does as the authors' code where that mixes up the axes: it
moves rows by the horizontal and columns by the vertical extent of the box, both in units of the map's width, and an
enlarged mask leaves its centre by the same exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fssops.models.mask_piloting.noise_sources import NoiseSource
from fssops.structures import MaskTargets

PilotMode = Literal["points", "shift", "scale", "shift_scale", "patch", "points_MAE"]

Size = tuple[int, int]


@dataclass
class Maps:
    """Objects at the finest level, one row a copy.

    Attributes:
        open: [copies, h, w] bool, True inside the object.
        boxes: [copies, 4] float32 centre x, centre y, width, height as shares of the unpadded image.
        sizes: (h_l, w_l) of the levels, coarsest first.
        scale: amount of noise.
        enlarge_above: a draw above this enlarges a copy.
        published: exchange the axes as the authors' code does.
    """

    open: Tensor
    boxes: Tensor
    sizes: Sequence[Size]
    scale: float
    enlarge_above: float
    published: bool


def touched_cells(masks: Tensor, size: Size) -> Tensor:
    """Cells of a map that a mask touches anywhere: bool [G, H, W] -> bool [G, h, w].

    The windows are those of ``F.interpolate(mode="area")``; the published code asks whether their mean exceeds 1e-8.
    """
    count, height, width = masks.shape
    if height % size[0] == 0 and width % size[1] == 0:
        windows = masks.view(count, size[0], height // size[0], size[1], width // size[1])
        return windows.any(4).any(2)
    return F.adaptive_max_pool2d(masks.float(), size) > 0


def nearest_cells(masks: Tensor, size: Size) -> Tensor:
    """Masks at another size by nearest neighbours (index rounded down): bool [G, H, W] -> bool [G, h, w]."""
    return F.interpolate(masks[:, None].to(torch.uint8), size=size, mode="nearest")[:, 0].bool()


def padded(masks: Tensor, size: Size) -> Tensor:
    """Masks [G, H, W] on the padded image, nothing set in the padding."""
    return F.pad(masks, (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1]))


def boxes_of(target: MaskTargets) -> Tensor:
    """Boxes around the masks, [G, 4] as in :class:`Maps`; of an empty mask all zeros."""
    height, width = target.masks.shape[-2:]
    corners = []
    for line in (target.masks.any(1), target.masks.any(2)):  # columns, rows
        places = line.int()
        first, last = places.argmax(1), line.shape[1] - places.flip(1).argmax(1)
        shown = line.any(1)
        corners.append((first * shown, last * shown))
    (left, right), (top, bottom) = corners
    boxes = torch.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top), dim=1)
    return boxes.float() / boxes.new_tensor([width, height, width, height], dtype=torch.float32)


def flipped_points(opened: Tensor, scale: float, heads: int | None, draws: NoiseSource, layer: int) -> Tensor:
    """Point noise: each cell flips with probability (open cells) * scale / cells.

    Args:
        opened: [copies, S] bool.
        scale: amount of noise; 0 leaves the maps as they are.
        heads: draw for each attention head on its own; None: the heads share the noise.
        draws: where random numbers come from.
        layer: decoder layer.

    Returns:
        [copies, S], with ``heads`` [copies, heads, S].
    """
    if heads is not None:
        opened = opened[:, None].expand(-1, heads, -1)
    if scale == 0:
        return opened
    ratio = opened.sum(-1, keepdim=True) * scale / opened.shape[-1]
    return opened ^ (draws.uniform(f"cells_{layer}", *opened.shape) < ratio)


def _moved(maps: Maps, enlarged: Tensor | None, offsets: Tensor | None) -> Tensor:
    """Maps whose open cells are moved, and pile up at the border where they would leave.

    Args:
        maps: of the objects.
        enlarged: [copies] bool, copies that are enlarged first; None: none.
        offsets: [copies, 2] rows and columns in cells; None: no shift.
    """
    height, width = maps.open.shape[1:]
    plain = maps.open if enlarged is None else maps.open & ~enlarged[:, None, None]
    cells = plain.nonzero()
    if enlarged is not None:
        size = torch.tensor([height, width])
        larger = (size.float() * (1 + maps.scale)).long() + 1
        spare = (size - larger).to(cells.device)
        copies = enlarged.nonzero()[:, 0]
        grown = nearest_cells(maps.open[copies], (int(larger[0]), int(larger[1]))).nonzero()
        centres = maps.boxes[:, :2] if maps.published else maps.boxes[:, [1, 0]]
        grown[:, 0] = copies[grown[:, 0]]
        grown[:, 1:] += (spare * centres).long()[grown[:, 0]]
        cells = torch.cat((cells, grown))
    copy, places = cells[:, 0], cells[:, 1:].float()
    if offsets is not None:
        places = places + offsets[copy]
    rows, columns = places[:, 0].clamp(0, height - 1).long(), places[:, 1].clamp(0, width - 1).long()
    moved = torch.zeros_like(maps.open)
    moved[copy, rows, columns] = True
    return moved


def _offsets(maps: Maps, draws: NoiseSource) -> Tensor:
    """[copies, 2] rows and columns, up to half the box times the scale either way."""
    reach = maps.boxes[:, 2:] / 2  # horizontal, vertical
    height, width = maps.open.shape[1:]
    unit = reach.new_tensor([width, width] if maps.published else [height, width])
    if not maps.published:
        reach = reach.flip(1)
    return (draws.uniform("offset", len(reach), 2) * 2 - 1) * reach * maps.scale * unit


def _levels_of(finest: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    return [nearest_cells(finest, size) for size in sizes]


def shifted(maps: Maps, draws: NoiseSource) -> list[Tensor]:
    """Shift: all cells of an object move by one random offset."""
    return _levels_of(_moved(maps, None, _offsets(maps, draws)), maps.sizes)


def scaled(maps: Maps, draws: NoiseSource) -> list[Tensor]:
    """Scale: some objects are enlarged about their centre, by 1 + scale."""
    enlarged = draws.uniform("scaled", len(maps.open)) > maps.enlarge_above
    return _levels_of(_moved(maps, enlarged, None), maps.sizes)


def shifted_and_scaled(maps: Maps, draws: NoiseSource) -> list[Tensor]:
    """Both: some are enlarged, all move."""
    offsets = _offsets(maps, draws)
    enlarged = draws.uniform("scaled", len(maps.open)) > maps.enlarge_above
    return _levels_of(_moved(maps, enlarged, offsets), maps.sizes)


def patched(maps: Maps, draws: NoiseSource) -> list[Tensor]:
    """Patch: one random rectangle of (object's cells) * scale cells is opened as well."""
    copies, height, width = maps.open.shape
    area = (maps.open.sum((1, 2)).float() * maps.scale).clamp(min=1.0)
    upright = draws.uniform("upright", copies) < 0.5  # the short side is the height
    one = torch.ones_like(area, dtype=torch.int64)
    short = draws.integers("short_side", one, area.sqrt().long())
    long = (area / short).long()
    high = torch.where(upright, short, long).clamp(max=height)
    wide = torch.where(upright, long, short).clamp(max=width)
    top = draws.integers("row", 0 * one, height - high)
    left = draws.integers("column", 0 * one, width - wide)
    rows = torch.arange(height, device=area.device)
    columns = torch.arange(width, device=area.device)
    in_rows = (rows >= top[:, None]) & (rows < (top + high)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    return _levels_of(maps.open | (in_rows[:, :, None] & in_columns[:, None]), maps.sizes)


def dropped_points(maps: Maps, draws: NoiseSource) -> list[Tensor]:
    """points_MAE: cells are closed at random with probability ``scale``, at each level anew."""
    noised: list[Tensor] = []
    opened = maps.open
    for level in reversed(range(len(maps.sizes))):
        opened = nearest_cells(opened, maps.sizes[level])
        dropped = draws.uniform(f"dropped_{level}", len(opened), opened[0].numel()).view_as(opened) < maps.scale
        noised.insert(0, opened & ~dropped)
    return noised


MAP_NOISES: dict[str, Callable[[Maps, NoiseSource], list[Tensor]]] = {
    "shift": shifted,
    "scale": scaled,
    "shift_scale": shifted_and_scaled,
    "patch": patched,
    "points_MAE": dropped_points,
}
"""Modes other than points: open maps [copies, h_l, w_l] of every level, coarsest first."""
