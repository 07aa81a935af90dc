"""INSID3 written out as its published code composes it, for tests and benchmarks to compare with.

It takes the weights from one of our models and does nothing clever: the references pass the encoder again with every
target, the position is projected out in all channels, all similarities and all distances are formed, the hierarchy
is scipy's, given the upper triangle, as scikit-learn's AgglomerativeClustering gives it, and the lattice of the
refinement is a dictionary, filled pixel by pixel. Square images, one way.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster import hierarchy
from torch import Tensor

from fssops.models.insid3 import INSID3
from fssops.normalisation import MEAN, STD


class PublishedINSID3:
    """The published prediction, in eval mode throughout.

    Args:
        model: whose encoder and options are shared.
        side: of the images, a multiple of the patch.

    Attributes:
        steps: what the last prediction came upon, by the names of the parity cases.
    """

    def __init__(self, model: INSID3, side: int) -> None:
        self.model, self.side = model, side
        self.steps: dict[str, Tensor] = {}
        black = (-torch.tensor(MEAN) / torch.tensor(STD)).view(1, 3, 1, 1).expand(1, 3, side, side)
        noise = F.normalize(self.encoded(black), dim=1)[0].flatten(1)
        left, _, _ = torch.linalg.svd(noise - noise.mean(1, keepdim=True), full_matrices=False)
        self.basis = left[:, : model.components]

    @torch.no_grad()
    def encoded(self, images: Tensor) -> Tensor:
        """[n, C, h, w] patch tokens after the final norm, all images in one pass."""
        features: Tensor = self.model.backbone(images)[self.model.backbone.taps[-1]]
        return features

    def __call__(
        self, references: Tensor, masks: Tensor, target: Tensor, size: tuple[int, int] | None = None
    ) -> Tensor:
        """Mask [S, S] bool, or of another size.

        Args:
            references: [K, 3, S, S] normalised.
            masks: [K, S, S] float, 1 inside.
            target: [3, S, S].
            size: (H, W) to resize the decided mask to.
        """
        features = self.encoded(torch.cat([references, target[None]]))
        low = self.segment(features, self.feature_masks(masks))
        full = F.interpolate(low[None, None].float(), size=masks.shape[-2:], mode="bilinear", align_corners=False) > 0.5
        if self.model.config.refinement == "crf":
            colours = target * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
            full = refined(full[0, 0], colours.clamp(0, 1))[None, None]
        if size is not None:
            full = F.interpolate(full.float(), size=size, mode="bilinear", align_corners=False) > 0.5
        return full[0, 0]

    def feature_masks(self, masks: Tensor) -> Tensor:
        """[K, h, w] bool."""
        cells = self.side // self.model.stride
        small = []
        for mask in masks:
            one = F.interpolate(mask[None, None], size=(cells, cells), mode="bilinear", align_corners=False) > 0.5
            if not one.any():
                one = F.interpolate(mask[None, None], size=(cells, cells), mode="nearest") > 0.5
            if not one.any():
                y, x = mask.nonzero().float().mean(0) / (self.side // cells)
                one[0, 0, int(y), int(x)] = True
            small.append(one[0, 0])
        return torch.stack(small)

    def segment(self, features: Tensor, masks: Tensor) -> Tensor:
        """Mask [h, w] bool at the features' size.

        Args:
            features: [K + 1, C, h, w], the target last.
            masks: [K, h, w] bool.
        """
        _, _, rows, columns = features.shape
        tokens = F.normalize(features, dim=1)
        flat = tokens.flatten(2)
        debiased = F.normalize(flat - self.basis @ (self.basis.T @ flat), dim=1)
        references, target = debiased[:-1], debiased[-1]  # [K, C, N], [C, N]
        inside = masks.flatten(1)
        means = torch.stack([reference[:, mask].mean(1) for reference, mask in zip(references, inside, strict=True)])
        prototype = F.normalize(means.mean(0), dim=0)
        similarity = prototype @ target
        forward = similarity > 0
        if not forward.any():
            forward = similarity > similarity.quantile(0.9)
        votes = torch.zeros_like(forward, dtype=torch.int64)
        best: list[list[Tensor]] = []
        for reference, mask in zip(references, inside, strict=True):
            cosines = torch.einsum("cj,ct->jt", reference, target)
            votes += mask[cosines.T.contiguous().argmax(1)]
            best.append([cosines[chosen].amax(0) if chosen.any() else cosines[0] - 2 for chosen in (mask, ~mask)])
        candidates = forward & (votes >= math.ceil(len(references) / 2))
        self.steps = {"debiased": debiased, "prototype": prototype, "sim_fwd": similarity, "forward": forward}
        self.steps |= {"votes": votes, "candidates": candidates, "ref_mask_feat": inside}
        self.steps |= {f"max_{side}": torch.stack([pair[k] for pair in best]) for k, side in enumerate(("fg", "bg"))}
        if not candidates.any():
            return torch.zeros(rows, columns, dtype=torch.bool)
        labels = self.clusters(flat[-1])
        low = self.aggregated(labels, flat[-1], target, prototype, similarity, candidates)
        self.steps |= {"cluster_labels": labels, "mask_low": low}
        return low.view(rows, columns)

    def clusters(self, tokens: Tensor) -> Tensor:
        """Labels [N] of [C, N] unit vectors."""
        distances = (1 - (tokens.T @ tokens).clamp(-1, 1)).cpu().numpy()
        first, second = np.triu_indices(len(distances), k=1)
        tree = hierarchy.linkage(distances[first, second], method="average")
        self.steps["merge_heights"] = torch.from_numpy(tree[:, 2])
        below = np.nextafter(1 - self.model.config.cluster_similarity, 0)
        return torch.from_numpy(hierarchy.fcluster(tree, below, "distance")).long() - 1

    def aggregated(
        self,
        labels: Tensor,
        tokens: Tensor,
        target: Tensor,
        prototype: Tensor,
        similarity: Tensor,
        candidates: Tensor,
    ) -> Tensor:
        """[N] bool, the clusters that join."""
        members = F.one_hot(labels).to(tokens.dtype)  # [N, M]
        area = members.sum(0)
        hits = members[candidates].sum(0)
        looks = F.normalize(target @ members / area, dim=0)
        closeness = prototype @ looks
        seed = closeness.masked_fill(hits == 0, -torch.inf).argmax()
        centres = F.normalize(tokens @ members / area, dim=0)
        weight = hits / area
        weight[seed] = 1
        cross, intra = similarity @ members / area, centres[:, seed] @ centres
        score = cross * intra * weight
        found = {"area": area, "hits": hits, "proto_sim": closeness, "cross": cross, "intra": intra, "weight": weight}
        self.steps |= {f"cluster.{name}": value for name, value in {**found, "score": score}.items()}
        self.steps["seed"] = seed[None]
        kept = (score > self.model.config.merge_threshold) & (weight > 0)
        return kept[labels]


def refined(mask: Tensor, colours: Tensor, reference_side: int = 512) -> Tensor:
    """A mask whose band about the outline is decided by the published random field, [S, S] bool.

    Args:
        mask: [S, S] bool.
        colours: [3, S, S] in 0..1.
        reference_side: of the images that the kernels' widths in pixels are for.
    """
    height, width = mask.shape
    scale = height / reference_side
    steps = torch.arange(-5, 6)
    disk = (steps[:, None] ** 2 + steps**2 <= 25).float()
    count = F.conv2d(mask[None, None].float(), disk[None, None], padding=5)[0, 0]
    core, outside = count == disk.sum(), count == 0
    inside = torch.full((height, width), 0.5, dtype=torch.float64)
    inside[core], inside[outside] = 0.95, 0.05
    unary = torch.stack([-inside.logit(), inside.logit()])
    places = [(row, column) for row in range(height) for column in range(width)]
    pixels = (colours / 0.03).flatten(1).T.tolist()
    position = [[y / (4 * scale), x / (4 * scale)] for y, x in places]
    both = [[y / (12 * scale), x / (12 * scale), *p] for (y, x), p in zip(places, pixels, strict=True)]
    spatial, bilateral = _Lattice(position), _Lattice(both)
    labels = unary.softmax(0)
    for _ in range(10):
        pairwise = -(3 * spatial.means(labels) + 20 * bilateral.means(labels))
        labels = _sparsemax_of_two(unary - pairwise)
    band = ~core & ~outside
    return torch.where(band, labels[1] > labels[0], mask)


def _sparsemax_of_two(scores: Tensor) -> Tensor:
    """Nearest point of the simplex to scores [2, ...]."""
    high = ((scores[1] - scores[0] + 1) / 2).clamp(0, 1)
    return torch.stack([1 - high, high])


class _Lattice:
    """Adams et al., "Fast high-dimensional filtering using the permutohedral lattice", 2010, point by point."""

    def __init__(self, features: list[list[float]]) -> None:
        self.d = len(features[0])
        self.corners = [self._simplex(feature) for feature in features]
        vertices = {vertex for corners in self.corners for vertex in corners}
        self.vertices = dict.fromkeys(vertices, 0.0)
        self.ones = self._sums([1.0] * len(features))

    def _simplex(self, feature: list[float]) -> dict[tuple[int, ...], float]:
        """Vertices about a point, and its barycentric coordinates among them."""
        d = self.d
        spread, tail = float(np.float32((d + 1) * math.sqrt(2 / 3))), np.float32(0)
        point: list[float] = []
        for i in range(d, 0, -1):
            scaled = np.float32(feature[i - 1]) * np.float32(spread / math.sqrt(i * (i + 1)))
            point.insert(0, float(tail - np.float32(i) * scaled))
            tail = tail + scaled
        point.insert(0, float(tail))
        below, above = ([(d + 1) * turn(value / (d + 1)) for value in point] for turn in (math.floor, math.ceil))
        nearest = [a if a - p < p - b else b for a, b, p in zip(above, below, point, strict=True)]
        order = sorted(range(d + 1), key=lambda i: nearest[i] - point[i])
        rank = [order.index(i) for i in range(d + 1)]
        excess = sum(nearest) // (d + 1)
        for i in range(d + 1):
            rank[i] += excess
            turn = (rank[i] < 0) - (rank[i] > d)
            rank[i], nearest[i] = rank[i] + turn * (d + 1), nearest[i] + turn * (d + 1)
        height = {rank[i]: (point[i] - nearest[i]) / (d + 1) for i in range(d + 1)}
        weights = [1 + height[d] - height[0]] + [height[d - r] - height[d - r + 1] for r in range(1, d + 1)]
        corners = [tuple(nearest[i] + r - (d + 1) * (rank[i] > d - r) for i in range(d + 1)) for r in range(d + 1)]
        return dict(zip(corners, weights, strict=True))

    def _sums(self, values: list[float]) -> list[float]:
        table = dict(self.vertices)
        for corners, value in zip(self.corners, values, strict=True):
            for vertex, weight in corners.items():
                table[vertex] += weight * value
        for axis in range(self.d + 1):
            step = [1] * (self.d + 1)
            step[axis] = -self.d
            table = {
                vertex: 0.5 * value
                + 0.25 * table.get(tuple(v + s for v, s in zip(vertex, step, strict=True)), 0.0)
                + 0.25 * table.get(tuple(v - s for v, s in zip(vertex, step, strict=True)), 0.0)
                for vertex, value in table.items()
            }
        return [sum(weight * table[vertex] for vertex, weight in corners.items()) for corners in self.corners]

    def means(self, labels: Tensor) -> Tensor:
        """[2, H, W] to the same, divided by what a map of ones gives."""
        sums = [self._sums(label.flatten().tolist()) for label in labels]
        return (torch.tensor(sums, dtype=labels.dtype) / torch.tensor(self.ones, dtype=labels.dtype)).view_as(labels)
