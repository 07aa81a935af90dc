"""INSID3 written out as its published code composes it, for tests and benchmarks to compare with.

It takes the weights from one of our models and does nothing clever: the references pass the encoder again with every
target, the position is projected out in all channels, all similarities and all distances are formed, and the hierarchy
is scipy's, given the upper triangle, as scikit-learn's AgglomerativeClustering gives it. Square images, one way.
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
    """

    def __init__(self, model: INSID3, side: int) -> None:
        self.model, self.side = model, side
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
        for reference, mask in zip(references, inside, strict=True):
            cosines = torch.einsum("cj,ct->jt", reference, target)
            votes += mask[cosines.T.contiguous().argmax(1)]
        candidates = forward & (votes >= math.ceil(len(references) / 2))
        if not candidates.any():
            return torch.zeros(rows, columns, dtype=torch.bool)
        labels = self.clusters(flat[-1])
        low = self.aggregated(labels, flat[-1], target, prototype, similarity, candidates)
        return low.view(rows, columns)

    def clusters(self, tokens: Tensor) -> Tensor:
        """Labels [N] of [C, N] unit vectors."""
        distances = (1 - (tokens.T @ tokens).clamp(-1, 1)).cpu().numpy()
        first, second = np.triu_indices(len(distances), k=1)
        tree = hierarchy.linkage(distances[first, second], method="average")
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
        seed = (prototype @ looks).masked_fill(hits == 0, -torch.inf).argmax()
        centres = F.normalize(tokens @ members / area, dim=0)
        weight = hits / area
        weight[seed] = 1
        score = (similarity @ members / area) * (centres[:, seed] @ centres) * weight
        kept = (score > self.model.config.merge_threshold) & (weight > 0)
        return kept[labels]
