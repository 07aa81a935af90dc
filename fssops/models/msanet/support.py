"""How MSANet summarises support sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssops import ops
from fssops.models.msanet.compared_layers import SupportLayers
from fssops.models.msanet.frozen_backbone import Outputs
from fssops.models.msanet.records import MSANetSupport
from fssops.models.msanet.similarity import resize


def support_summary(
    foreground: Tensor,
    step: int,
    run: Callable[[Sequence[int], SupportLayers], Outputs],
    layers: SupportLayers,
    embedding: nn.Module,
    gate: nn.Module,
) -> MSANetSupport:
    """Summary of support sets, ``step`` shots of all of them at a time.

    Args:
        foreground: [B, N, K, H, W].
        step: divides K.
        run: hands the compared layers of some images over, and returns the rest.
        layers: takes them, empty.
        embedding: of the middle and the low output of the backbone.
        gate: the channel attention.
    """
    ways, shots = foreground.shape[1:3]
    sets = foreground.shape[0] * ways
    parts = []
    for first in range(0, shots, step):
        rows = [index * shots + shot for index in range(sets) for shot in range(first, first + step)]
        low, middle, top, gram = run(rows, layers)
        layers.take_top(rows, top)
        del top
        guides = _guides(embedding(middle, low), foreground[:, :, first : first + step], gate)
        parts.append((*guides, gram.unflatten(0, (-1, step))))
    prototypes, gates, attention, grams = zip(*parts, strict=True)
    compared, masks, top, top_masks = layers.of_sets(sets)
    return MSANetSupport(
        ways=ways,
        layers=compared,
        masks=masks,
        top=top,
        top_masks=top_masks,
        prototypes=torch.cat(prototypes, dim=1),
        gates=torch.cat(gates, dim=1),
        attention=torch.stack(attention).sum(0) / shots,
        gram=torch.cat(grams, dim=1),
    )


def _guides(embedded: Tensor, foreground: Tensor, gate: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """What the supports tell the decoder, beside similarities.

    Args:
        embedded: [E * K, C, h, w] embeddings of the support images.
        foreground: [B, N, K, H, W], B * N = E.
        gate: the channel attention.

    Returns:
        prototypes [E, K, C], gates [E, K, C], and the sum over shots of the gated embeddings [E, C, h, w].
    """
    masks, shots = foreground.flatten(0, 1), foreground.shape[2]
    size = (embedded.shape[-2], embedded.shape[-1])
    small = resize(masks, size).flatten(0, 1)[:, None].to(embedded.dtype)
    with torch.autocast(embedded.device.type, enabled=False):
        prototypes = ops.masked_average_pooling(embedded.float(), small.float(), eps=5e-4)[:, 0]
    inside = F.interpolate(masks, size=size, mode="nearest").flatten(0, 1)[:, None].to(embedded.dtype)
    gates = gate((embedded * inside).mean((-2, -1), keepdim=True))
    attention = (gates * embedded).unflatten(0, (-1, shots)).sum(1)
    return prototypes.unflatten(0, (-1, shots)), gates[:, :, 0, 0].unflatten(0, (-1, shots)), attention
