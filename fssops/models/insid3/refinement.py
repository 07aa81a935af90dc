"""Outlines sharpened by a dense conditional random field, within a band about them.

As the published option (github netw0rkf10w/CRF at 13a123f): two labels, a spatial and a bilateral Gaussian kernel with
Potts weights 3 and 20, ten steps of regularised Frank-Wolfe (Lê-Huu and Alahari, "Regularized Frank-Wolfe for dense
CRFs", NeurIPS 2021) with step 1 and a Euclidean regulariser, which with two labels is y <- clamp(unary + K y, -1, 1).
Both kernels are filtered in a permutohedral lattice (Adams et al., "Fast high-dimensional filtering using the
permutohedral lattice", 2010), whose result is divided, pixel by pixel, by that of a map of ones.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BAND_RADIUS = 5
CERTAIN = 0.95
STEPS = 10
SPATIAL_WEIGHT, BILATERAL_WEIGHT = 3.0, 20.0
REFERENCE_SIDE = 512
BILATERAL_POSITION, BILATERAL_COLOUR, SPATIAL_POSITION = 12.0, 0.03, 4.0
"""Standard deviations: pixels of an image of 512 x 512, and colours in 0..1."""


def refine(shares: Tensor, colours: Tensor) -> Tensor:
    """Labels of an image with their outlines refined, each class against all others.

    Args:
        shares: [1 + N, H, W]; the largest at a pixel is its label, 0 the background.
        colours: [3, H, W] in 0..1.

    Returns:
        [1 + N, H, W] float, one class a pixel; where the refined outlines of two overlap, the larger share has it.
    """
    labels = shares.argmax(0)
    masks = labels == torch.arange(1, len(shares), device=labels.device)[:, None, None]
    inside = refine_masks(masks, colours)
    claimed = shares[1:].masked_fill(~inside, -1).argmax(0) + 1
    refined = torch.where(inside.any(0), claimed, 0)
    return F.one_hot(refined, len(shares)).permute(2, 0, 1).to(shares.dtype)


def refine_masks(masks: Tensor, colours: Tensor) -> Tensor:
    """Masks whose pixels within five of their outlines follow the colours.

    Args:
        masks: [N, H, W] bool.
        colours: [3, H, W] in 0..1.

    Returns:
        [N, H, W] bool.
    """
    bands = outline_bands(masks)
    if not bool(bands.any()):
        return masks
    height, width = masks.shape[-2:]
    scale = math.sqrt(height * width) / REFERENCE_SIDE
    rows, columns = torch.meshgrid(*(torch.arange(n, device=colours.device) for n in (height, width)), indexing="ij")
    places = torch.stack([rows, columns], -1).flatten(0, 1).to(colours.dtype)
    pixels = colours.flatten(1).T / BILATERAL_COLOUR
    spatial = Lattice(places / (SPATIAL_POSITION * scale))
    bilateral = Lattice(torch.cat([places / (BILATERAL_POSITION * scale), pixels], 1))
    logit = math.log(CERTAIN / (1 - CERTAIN))
    unary = torch.where(masks, 2 * logit, -2 * logit).masked_fill(bands, 0.0).flatten(1).to(colours.dtype)
    lean = torch.tanh(unary / 2)
    for _ in range(STEPS):
        lean = (unary + SPATIAL_WEIGHT * spatial(lean) + BILATERAL_WEIGHT * bilateral(lean)).clamp(-1, 1)
    return torch.where(bands, lean.view_as(masks) > 0, masks)


def outline_bands(masks: Tensor) -> Tensor:
    """[N, H, W] bool: pixels with both kinds within a disk of radius 5; beyond the image is outside."""
    steps = torch.arange(-BAND_RADIUS, BAND_RADIUS + 1, device=masks.device)
    disk = (steps[:, None] ** 2 + steps**2 <= BAND_RADIUS**2).float()
    count = F.conv2d(masks[:, None].float(), disk[None, None], padding=BAND_RADIUS)[:, 0].round()
    return (count > 0) & (count < disk.sum())


class Lattice:
    """Gaussian means of scattered values in a permutohedral lattice, weighted by about exp(-|f_p - f_q|^2 / 2).

    Args:
        features: [n, d] in standard deviations.
    """

    def __init__(self, features: Tensor) -> None:
        count, d = features.shape
        device = features.device
        axes = torch.arange(d, device=device)
        # In the published order of roundings: points of a grid lie on faces between simplices, where these decide.
        spread = torch.tensor((d + 1) * math.sqrt(2 / 3), dtype=features.dtype).double()
        scaled = features * (spread / ((axes + 1.0) * (axes + 2.0)).double().sqrt()).to(features.dtype)
        # Into the plane of d + 1 coordinates that add up to 0.
        tail = scaled.flip(1).cumsum(1).flip(1)
        elevated = torch.cat([tail, torch.zeros_like(tail[:, :1])], 1)
        elevated[:, 1:] -= (axes + 1) * scaled
        # The simplex around each point: its remainder-0 corner and the order of the coordinates within.
        below, above = (turn(elevated / (d + 1)) * (d + 1) for turn in (torch.floor, torch.ceil))
        corner = torch.where(above - elevated < elevated - below, above, below)
        order = (elevated - corner).argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(d + 1, device=device).expand(count, d + 1))
        rank = rank + (corner.sum(1, keepdim=True) / (d + 1)).round().long()
        shift = (rank < 0).long() - (rank > d).long()
        rank, corner = rank + shift * (d + 1), corner + shift * (d + 1)
        within = torch.empty_like(elevated).scatter_(1, rank, (elevated - corner) / (d + 1))
        weights = F.pad(within.flip(1), (0, 1)) - F.pad(within.flip(1), (1, 0))
        weights[:, 0] += 1 + weights[:, -1]
        self.weights = weights[:, : d + 1]

        # Vertex r of a simplex is its corner plus r, less d + 1 in the r coordinates of the highest ranks. The last
        # coordinate follows from the others, which are packed into one number.
        lowest = corner[:, :d].long().amin(0) - 2 * (d + 1)
        span = corner[:, :d].long().amax(0) + 2 * (d + 1) - lowest
        radix = F.pad(F.pad(span[:-1].cumprod(0), (1, 0), value=1), (0, 1))
        by_rank = torch.empty_like(rank).scatter_(1, rank, radix.expand(count, d + 1))
        taken = F.pad(by_rank.flip(1).cumsum(1)[:, :d], (1, 0))
        keys = ((corner[:, :d].long() - lowest) * radix[:d]).sum(1, keepdim=True) - (d + 1) * taken
        keys += torch.arange(d + 1, device=device) * radix.sum()
        packed, self.vertices = torch.unique(keys, return_inverse=True)
        self.count = len(packed)
        steps = (d + 1) * radix - radix.sum()
        self.neighbours = [(self._places(packed, packed + step), self._places(packed, packed - step)) for step in steps]
        self.total = self._sums(torch.ones(1, count, device=device, dtype=features.dtype))

    def _places(self, packed: Tensor, wanted: Tensor) -> Tensor:
        """Where vertices are; those that no point touches are the one after the last, which holds 0."""
        place = torch.searchsorted(packed, wanted).clamp(max=self.count - 1)
        return torch.where(packed[place] == wanted, place, self.count)

    def _sums(self, values: Tensor) -> Tensor:
        return torch.stack([self._sum(one) for one in values])

    def _sum(self, values: Tensor) -> Tensor:
        table = values.new_zeros(self.count + 1)
        table.index_add_(0, self.vertices.flatten(), (self.weights * values[:, None]).flatten())
        for before, after in self.neighbours:
            table[:-1] = table[:-1] + 0.5 * (table[before] + table[after])
        return (self.weights * table[self.vertices]).sum(1)

    def __call__(self, values: Tensor) -> Tensor:
        """[N, n] to the same, each a mean over all n."""
        return self._sums(values) / self.total
