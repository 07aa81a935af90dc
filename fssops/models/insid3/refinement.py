"""Outlines sharpened by a dense conditional random field, within a band about them.

As the published option: two labels, a spatial and a bilateral Gaussian kernel with Potts weights 3 and 20, ten steps of
regularised Frank-Wolfe (Lê-Huu and Alahari, "Regularized Frank-Wolfe for dense CRFs", NeurIPS 2021) with step 1 and a
Euclidean regulariser, which with two labels is y <- clamp(unary + K y, -1, 1). Here kernels are normalised at every
pixel, colours are filtered in a permutohedral lattice (Adams et al., "Fast high-dimensional filtering using the
permutohedral lattice", 2010), and only the surroundings of the band take part.
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
    ways = range(1, len(shares))
    inside = torch.stack([refine_mask(labels == way, colours) for way in ways])
    claimed = shares[1:].masked_fill(~inside, -1).argmax(0) + 1
    refined = torch.where(inside.any(0), claimed, 0)
    return F.one_hot(refined, len(shares)).permute(2, 0, 1).to(shares.dtype)


def refine_mask(mask: Tensor, colours: Tensor) -> Tensor:
    """A mask whose pixels within five of its outline follow the colours.

    Args:
        mask: [H, W] bool.
        colours: [3, H, W] in 0..1.

    Returns:
        [H, W] bool.
    """
    band = outline_band(mask)
    if not bool(band.any()):
        return mask
    height, width = mask.shape
    scale = math.sqrt(height * width) / REFERENCE_SIDE
    reach = math.ceil(3 * BILATERAL_POSITION * scale)
    rows, columns = band.any(1).nonzero()[:, 0], band.any(0).nonzero()[:, 0]
    top, left = max(int(rows[0]) - reach, 0), max(int(columns[0]) - reach, 0)
    window = (slice(top, int(rows[-1]) + reach + 1), slice(left, int(columns[-1]) + reach + 1))
    inner, inner_band, inner_colours = mask[window], band[window], colours[:, window[0], window[1]]
    logit = math.log(CERTAIN / (1 - CERTAIN))
    unary = torch.where(inner, 2 * logit, -2 * logit).masked_fill(inner_band, 0.0)
    spatial = _SpatialKernel(inner.shape, SPATIAL_POSITION * scale, colours)
    bilateral = Lattice(_bilateral_features(inner_colours, BILATERAL_POSITION * scale))
    spatial_sum, bilateral_sum = spatial(torch.ones_like(unary)), bilateral(torch.ones_like(unary).flatten())
    lean = torch.tanh(unary / 2)
    for _ in range(STEPS):
        near = spatial(lean) / spatial_sum
        alike = (bilateral(lean.flatten()) / bilateral_sum).view_as(lean)
        lean = (unary + SPATIAL_WEIGHT * near + BILATERAL_WEIGHT * alike).clamp(-1, 1)
    refined = mask.clone()
    refined[window] = torch.where(inner_band, lean > 0, inner)
    return refined


def outline_band(mask: Tensor) -> Tensor:
    """[H, W] bool: pixels with both kinds within a disk of radius 5; beyond the image is outside."""
    steps = torch.arange(-BAND_RADIUS, BAND_RADIUS + 1, device=mask.device)
    disk = (steps[:, None] ** 2 + steps**2 <= BAND_RADIUS**2).float()
    count = F.conv2d(mask[None, None].float(), disk[None, None], padding=BAND_RADIUS)[0, 0].round()
    return (count > 0) & (count < disk.sum())


def _bilateral_features(colours: Tensor, position: float) -> Tensor:
    """[H * W, 5]: row, column and colour in standard deviations."""
    height, width = colours.shape[-2:]
    rows = torch.arange(height, device=colours.device, dtype=colours.dtype)[:, None].expand(height, width)
    columns = torch.arange(width, device=colours.device, dtype=colours.dtype).expand(height, width)
    return torch.stack([rows / position, columns / position, *(colours / BILATERAL_COLOUR)], -1).flatten(0, 1)


class _SpatialKernel:
    """Gaussian smoothing of a map in two passes, without normalisation."""

    def __init__(self, size: torch.Size, deviation: float, like: Tensor) -> None:
        reach = min(math.ceil(3 * deviation), max(size) - 1)
        steps = torch.arange(-reach, reach + 1, device=like.device, dtype=like.dtype)
        self.kernel = torch.exp(-0.5 * (steps / deviation) ** 2)
        self.reach = reach

    def __call__(self, values: Tensor) -> Tensor:
        down = F.conv2d(values[None, None], self.kernel.view(1, 1, -1, 1), padding=(self.reach, 0))
        across = F.conv2d(down, self.kernel.view(1, 1, 1, -1), padding=(0, self.reach))
        return across[0, 0]


class Lattice:
    """Gaussian filtering of scattered values in a permutohedral lattice, exp(-|f_p - f_q|^2 / 2) but for a factor.

    Args:
        features: [n, d] in standard deviations.
    """

    def __init__(self, features: Tensor) -> None:
        count, d = features.shape
        device = features.device
        axes = torch.arange(d, device=device)
        scaled = features * (math.sqrt(2 / 3) * (d + 1)) / ((axes + 1.0) * (axes + 2.0)).sqrt()
        # Into the plane of d + 1 coordinates that add up to 0.
        tail = scaled.flip(1).cumsum(1).flip(1)
        elevated = torch.cat([tail, torch.zeros_like(tail[:, :1])], 1)
        elevated[:, 1:] -= (axes + 1) * scaled
        # The simplex around each point: its remainder-0 corner and the order of the coordinates within.
        corner = (elevated / (d + 1)).round() * (d + 1)
        order = (elevated - corner).argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(d + 1, device=device).expand(count, d + 1))
        rank = rank + (corner.sum(1, keepdim=True) / (d + 1)).round().long()
        shift = (rank < 0).long() - (rank > d).long()
        rank, corner = rank + shift * (d + 1), corner + shift * (d + 1)
        within = torch.empty_like(elevated).scatter_(1, rank, (elevated - corner) / (d + 1))
        weights = F.pad(within.flip(1), (0, 1)) - F.pad(within.flip(1), (1, 0))
        weights[:, 0] += 1 + weights[:, -1]
        self.weights = weights[:, : d + 1]

        corner_index = torch.arange(d + 1, device=device)
        keys = corner.long()[:, None, :d] + corner_index[:, None]
        keys = keys - (d + 1) * (rank[:, None, :d] > d - corner_index[:, None]).long()
        low = keys.flatten(0, 1).amin(0) - (d + 1)
        span = keys.flatten(0, 1).amax(0) + (d + 1) - low + 1
        radix = F.pad(span[:-1].cumprod(0), (1, 0), value=1)
        packed, self.vertices = torch.unique(((keys - low) * radix).sum(2), return_inverse=True)
        self.count = len(packed)
        steps = torch.cat([(d + 1) * radix, radix.new_zeros(1)]) - radix.sum()
        self.neighbours = [(self._places(packed, packed + step), self._places(packed, packed - step)) for step in steps]

    def _places(self, packed: Tensor, wanted: Tensor) -> Tensor:
        """Where vertices are; those that no point touches are the one after the last, which holds 0."""
        place = torch.searchsorted(packed, wanted).clamp(max=self.count - 1)
        return torch.where(packed[place] == wanted, place, self.count)

    def __call__(self, values: Tensor) -> Tensor:
        """[n] to [n]."""
        table = values.new_zeros(self.count + 1)
        table.index_add_(0, self.vertices.flatten(), (self.weights * values[:, None]).flatten())
        for before, after in self.neighbours:
            table[:-1] = table[:-1] + 0.5 * (table[before] + table[after])
        return (self.weights * table[self.vertices]).sum(1)
