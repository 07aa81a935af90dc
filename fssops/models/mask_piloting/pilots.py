"""Piloted queries of a batch: their content, and where they may attend in every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fssops import ops
from fssops.models.mask_piloting.noise import (
    MAP_NOISES,
    Maps,
    PilotMode,
    Size,
    boxes_of,
    flipped_points,
    nearest_cells,
    padded,
    touched_cells,
)
from fssops.models.mask_piloting.noise_sources import NoiseSource
from fssops.models.mask_piloting.query_layout import QueryLayout
from fssops.structures import MaskTargets


@dataclass(frozen=True)
class PilotOptions:
    """How piloted queries are made; see :class:`fssops.models.mp_former.MPFormerConfig`.

    Attributes:
        mode: noise of the masks.
        groups: copies of every target; from 100 on, the number of queries that the copies may have together.
        noise_scale: amount of it.
        enlarge_above: of scale and shift_scale: a draw above this enlarges a copy.
        label_noise: share of the copies that are told a random class; 0 none.
        all_layers: give every layer the targets' masks; else only the first and the ``levels`` after it.
        head_noise: heads that draw their own point noise; None where they share it.
        published: as the authors' code, see :class:`fssops.models.mp_former.MPFormerConfig`.
    """

    mode: PilotMode
    groups: int
    noise_scale: float
    enlarge_above: float
    label_noise: float
    all_layers: bool
    head_noise: int | None
    published: bool


@dataclass
class Pilots:
    """The piloted part of a batch.

    Attributes:
        layout: which query is the copy of which target.
        content: [B, layout.total, C] initial queries; zeros in those that no copy takes.
        masks: of each layer, where piloted queries may attend in the image; None where their predictions say so. The
            rows of queries that no copy takes are open everywhere.
        blocked: [total + Q, total + Q] bool attention mask of self-attention, True = may not attend.
    """

    layout: QueryLayout
    content: Tensor
    masks: list[ops.AttentionMask | None]
    blocked: Tensor


def build_pilots(
    targets: Sequence[MaskTargets],
    embedding: Callable[[Tensor], Tensor],
    options: PilotOptions,
    draws: NoiseSource,
    *,
    classes: int,
    queries: int,
    layers: int,
    sizes: Sequence[Size],
    padded_size: Size,
    padding: Sequence[Tensor | None],
) -> Pilots | None:
    """Make the piloted queries of a batch; None where no image has a target, or there are no groups.

    Args:
        targets: one an image; an image may have none.
        embedding: labels [n] -> content [n, C].
        options: how they are made.
        draws: where random numbers come from.
        classes: number of classes, for wrong labels.
        queries: normal queries, which follow the piloted ones.
        layers: decoder layers.
        sizes: (h_l, w_l) of the levels, coarsest first.
        padded_size: (H, W) of the padded images.
        padding: of each level [B, S_l] bool, True = padding, or None.
    """
    device = targets[0].labels.device
    layout = QueryLayout.of([len(target.labels) for target in targets], options.groups, device)
    if layout is None:
        return None
    piloted = layers if options.all_layers else min(layers, len(sizes) + 1)
    with torch.no_grad():
        closed = (_point_maps if options.mode == "points" else _noised_maps)(
            targets, layout, options, draws, piloted, sizes, padded_size
        )
        # Layers of one level share their rows where the noise is drawn once, and then their bits.
        packed: dict[int, ops.AttentionMask] = {}
        masks: list[ops.AttentionMask | None] = [None] * layers
        for layer, rows in enumerate(closed):
            if id(rows) not in packed:
                blocked = padding[layer % len(sizes)]
                mask = _packed(rows, layout)
                packed[id(rows)] = mask if blocked is None else mask.with_padding(blocked)
            masks[layer] = packed[id(rows)]
    content = _content(targets, layout, embedding, options, draws, classes)
    return Pilots(layout, content, masks, layout.self_attention_mask(queries))


def _point_maps(
    targets: Sequence[MaskTargets],
    layout: QueryLayout,
    options: PilotOptions,
    draws: NoiseSource,
    layers: int,
    sizes: Sequence[Size],
    padded_size: Size,
) -> list[Tensor]:
    """Closed cells [copies, S] or [copies, M, S] of the first ``layers``: open are those the object touches."""
    present = [padded(target.masks, padded_size) for target in targets if len(target.labels)]
    opened = [torch.cat([touched_cells(masks, size) for masks in present]).flatten(1)[layout.sources] for size in sizes]
    closed: list[Tensor] = []
    for layer in range(layers):
        level = layer % len(sizes)
        if options.noise_scale == 0 and layer >= len(sizes):
            closed.append(closed[level])
        else:
            closed.append(~flipped_points(opened[level], options.noise_scale, options.head_noise, draws, layer))
    return closed


def _noised_maps(
    targets: Sequence[MaskTargets],
    layout: QueryLayout,
    options: PilotOptions,
    draws: NoiseSource,
    layers: int,
    sizes: Sequence[Size],
    padded_size: Size,
) -> list[Tensor]:
    """Closed cells [copies, S] of the first ``layers`` in the modes that change the whole map once."""
    present = [target for target in targets if len(target.labels)]
    opened = torch.cat([nearest_cells(padded(target.masks, padded_size), sizes[-1]) for target in present])
    maps = Maps(
        opened[layout.sources],
        torch.cat([boxes_of(target) for target in present])[layout.sources],
        sizes,
        options.noise_scale,
        options.enlarge_above,
        options.published,
    )
    noised = [level.flatten(1) for level in MAP_NOISES[options.mode](maps, draws)]
    outside = [~level for level in noised]
    # The authors' code takes the closed map for a probability after the first layer and inverts it by that.
    later = noised if options.published else outside
    return [(later if layer else outside)[layer % len(sizes)] for layer in range(layers)]


def _packed(closed: Tensor, layout: QueryLayout) -> ops.AttentionMask:
    """The mask of all piloted queries; rows without an open cell, those that no copy takes too, are open everywhere."""
    heads = closed.shape[1:-1]
    rows = closed.new_ones((len(layout.counts), layout.total, *heads, closed.shape[-1]))
    rows[layout.images, layout.places] = closed
    return ops.pack_attention_mask(rows.transpose(1, 2).contiguous() if heads else rows)


def _content(
    targets: Sequence[MaskTargets],
    layout: QueryLayout,
    embedding: Callable[[Tensor], Tensor],
    options: PilotOptions,
    draws: NoiseSource,
    classes: int,
) -> Tensor:
    labels = torch.cat([target.labels for target in targets])[layout.sources]
    if options.label_noise > 0:
        relabelled = (draws.uniform("relabelled", len(labels)) < options.label_noise).nonzero()[:, 0]
        zeros = torch.zeros_like(relabelled)
        labels = labels.index_copy(0, relabelled, draws.integers("labels", zeros, zeros + (classes - 1)))
    content = embedding(labels)
    if options.mode == "shift" and options.label_noise <= 0:
        content = content + (draws.uniform("content", *content.shape) * 2 - 1) * options.noise_scale * content
    placed = content.new_zeros((len(layout.counts), layout.total, content.shape[1]))
    return placed.index_put((layout.images, layout.places), content)
