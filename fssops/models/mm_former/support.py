"""How MM-Former summarises support sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from fssops.models.layers.position_encoding import PositionEncodingCache
from fssops.models.mm_former.alignment import tokens_of
from fssops.models.mm_former.records import MMFormerSupport, inside_mask
from fssops.models.mm_former.segmenter import padded_size


def support_summary(
    levels: Sequence[Tensor],
    foreground: Tensor,
    encoding: PositionEncodingCache,
    shorten: Callable[[Tensor], Tensor],
    *,
    published: bool,
) -> MMFormerSupport:
    """Summary of support sets from their masked maps, of which only the tokens of the object are kept.

    Args:
        levels: aligned maps [B * N * K, C, h, w] of one size.
        foreground: [B, N, K, H, W].
        encoding: of positions.
        shorten: makes maps [n, C, h, w] as small as queries attend to them.
        published: weigh the tokens of a prototype by masks resized with aligned corners.
    """
    ways, shots = foreground.shape[1:3]
    size = (int(levels[0].shape[2]), int(levels[0].shape[3]))
    height, width = padded_size(foreground.shape[3], foreground.shape[4])
    masks = F.pad(foreground, (0, width - foreground.shape[4], 0, height - foreground.shape[3])).flatten(0, 2)[:, None]
    soft = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
    weights = F.interpolate(masks, size=size, mode="bilinear", align_corners=True) if published else soft
    object_places, weights = inside_mask(weights.flatten(1))  # [n, T]
    place = encoding(size, levels[0].device).t().unflatten(1, size)[None] * soft  # [n, C, h, w]

    def of_object(maps: Tensor) -> Tensor:
        rows = tokens_of(maps)
        inside: Tensor = rows.gather(1, object_places[..., None].expand(-1, -1, rows.shape[2]))
        return inside.unflatten(0, (-1, shots))  # type: ignore[no-any-return]

    keys, values, tokens = [], [], []
    short_place = tokens_of(shorten(place))
    for maps in levels:
        masked = maps * soft.to(maps.dtype)
        value = tokens_of(shorten(masked))
        keys.append((value + short_place.to(value.dtype)).unflatten(0, (-1, shots)))
        values.append(value.unflatten(0, (-1, shots)))
        tokens.append(of_object(masked))
    positions = of_object(place).to(tokens[0].dtype)
    return MMFormerSupport(ways, keys, values, tokens, positions, weights.unflatten(0, (-1, shots)))
