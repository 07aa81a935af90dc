"""Prototype matching on frozen features: few-shot segmentation without any training.

PANet's matching (Wang et al., ICCV 2019) with what frozen features allow beyond one prototype a class. Each piece is an
option of :class:`PrototypeMatchingConfig`, which names its source; with ``taps`` of one map and the other options at 1,
0 or off it is PANet untrained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssops import ops
from fssops.models.backbones.build import build_backbone, check_backbone, finest_stride, row_of
from fssops.models.checks import Natural, Positive, Share, check_images, check_options
from fssops.models.insid3.refinement import refine
from fssops.models.layers.image_input import images_a_pass
from fssops.normalisation import MEAN, STD
from fssops.structures import FewShotBatch

STRIDE = 16
POOLING_EPS, COSINE_EPS = 1e-5, 1e-8
LEAST_POSITIONS = 12
"""Positions of a query that its own prototypes are made of where fewer are certain; as published."""
CLUSTERING_STEPS = 10
SMALLEST_SHARE = 1e-6


@dataclass(frozen=True)
class PrototypeMatchingConfig:
    """Options of :class:`PrototypeMatching`.

    Attributes:
        backbone: any; built for stride 16, or the next that it has.
        taps: maps that are compared, at the last one's resolution; each is scaled to unit length and counts alike
            (hypercolumns: Hariharan et al., CVPR 2015).
        flip: features are the mean of those of the image and of its mirror image.
        scale: factor of the cosines, for probabilities and for what counts as certain (PANet's alpha).
        foreground_prototypes: of each way. 1: the mean; more: clusters by spherical k-means (PPNet: Liu et al., ECCV
            2020), the best of which counts; 0: every labelled position is one (dense matching, as the prior mask of
            PFENet: Tian et al., TPAMI 2020).
        background_prototypes: the same of the background.
        self_support: share of the query's own foreground prototype, the mean of its positions that are certain, in a
            way's score (self-support matching: Fan et al., ECCV 2022; theirs is 0.5). 0: none, nor of the background.
        certain_foreground: probability above which a position is certain; published 0.7.
        certain_background: the same of the background; published 0.6.
        support_background: share of the supports' background prototypes where the query's own take part; published 0.
        adaptive_background: share, of the query's own background score, of the certain background positions weighted
            for each position by their likeness to it; published 0.7.
        adaptive_temperature: of this weighting's softmax over cosines; published 0.5.
        refinement: "none", or "crf": a dense conditional random field decides near outlines, as in INSID3.
    """

    backbone: str = "efficientnet_lite2"
    taps: tuple[str, ...] = ("res4", "res5")
    flip: bool = False
    scale: Positive = 20.0
    foreground_prototypes: Natural = 1
    background_prototypes: Natural = 1
    self_support: Share = 0.5
    certain_foreground: Share = 0.7
    certain_background: Share = 0.6
    support_background: Share = 0.0
    adaptive_background: Share = 0.3
    adaptive_temperature: Positive = 0.05
    refinement: Literal["none", "crf"] = "none"

    def __post_init__(self) -> None:
        check_options(self)
        check_backbone(self)
        row = row_of(self.backbone)
        if not self.taps or set(self.taps) - {*row.channels, *row.further}:
            raise ValueError(
                f"PrototypeMatchingConfig: taps of {self.backbone} must be among "
                f"{', '.join((*row.channels, *row.further))}, got {self.taps}"
            )


@dataclass
class PrototypeMatchingSupport:
    """Summary of B support sets.

    Attributes:
        foreground: [B, N, P, C] float32, prototypes of each way; P is 0 with ``foreground_prototypes=0``.
        background: [B, M, C] float32.
        shown: [B, N] bool: ways that some support shows; the others have no prototype and are never found.
        positions: [B, N * K, C, h, w], features of the supports; None where no position is its own prototype.
        masks: [B, 1 + N, N * K, h, w] bool, which of them belong to the background and to each way; likewise.
    """

    foreground: Tensor
    background: Tensor
    shown: Tensor
    positions: Tensor | None
    masks: Tensor | None


class PrototypeMatching(nn.Module):
    """Training-free segmenter; see :class:`fssops.models.interface.FewShotModel` for the steps it offers.

    It has no losses, so it is not :class:`fssops.models.interface.Trainable`, and training refuses it. Matching is in
    float32 under any autocast; the backbone's part may be in lower precision.
    """

    name = "prototype_matching"

    def __init__(self, config: PrototypeMatchingConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PrototypeMatchingConfig()
        stride = finest_stride(config.backbone, STRIDE)
        self.backbone = build_backbone(config.backbone, taps=config.taps, stride=stride, frozen=True)
        self.stride: int = self.backbone.strides[config.taps[-1]]
        self.channels: int = sum(self.backbone.channels[tap] for tap in config.taps)

    def forward(self, batch: FewShotBatch) -> Tensor:
        """Logits [B, Q, 1 + N, H, W] of the query images."""
        support = self.summarise(
            self.encode(batch.support_images.flatten(0, 2)), batch.support_foreground, batch.support_background
        )
        height, width = batch.query_images.shape[-2:]
        return self.match(support, self.encode(batch.query_images.flatten(0, 1)), (height, width))

    @torch.no_grad()
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """{"features": [n, C, h, w] unit vectors in float32} of normalised images [n, 3, H, W].

        With ``refinement="crf"`` also "images" [n, 3, H, W].

        Raises:
            ValueError: images of another shape, not floating point, or smaller than the stride.
        """
        check_images("PrototypeMatching.encode", images, self.stride)
        features = {"features": torch.cat([self._features(part) for part in images.split(images_a_pass(images))])}
        return {**features, "images": images} if self.config.refinement == "crf" else features

    def query_features(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The features as they are: nothing else depends on a query image alone."""
        return features

    @torch.no_grad()
    def summarise(
        self, features: dict[str, Tensor], foreground: Tensor, background: Tensor
    ) -> PrototypeMatchingSupport:
        """Prototypes of support sets.

        Args:
            features: as ``encode`` gives them, [B * N * K, ...].
            foreground: [B, N, K, H, W] float in [0, 1].
            background: [B, N, K, H, W] float in [0, 1].
        """
        episodes, ways, _ = foreground.shape[:3]
        images, config = features["features"], self.config
        masks = torch.stack([background.flatten(0, 2), foreground.flatten(0, 2)], dim=1).to(images.dtype)
        with _exact(images):
            behind = prototypes(images, masks[:, :1], config.background_prototypes, episodes)
            before = prototypes(images, masks[:, 1:], config.foreground_prototypes, episodes * ways)
        shown = foreground.flatten(2).any(2)
        if config.foreground_prototypes and config.background_prototypes:
            return PrototypeMatchingSupport(before.unflatten(0, (episodes, ways)), behind, shown, None, None)
        inside = positions_inside(masks, images.shape[-2:]).unflatten(0, (episodes, ways, -1))
        own = torch.eye(ways, dtype=torch.bool, device=images.device)[None, :, :, None, None, None]
        of_ways = (inside[:, None, :, :, 1] & own).flatten(2, 3)  # each way's on its own supports alone
        joined = torch.cat([inside[:, :, :, 0].flatten(1, 2)[:, None], of_ways], dim=1)
        return PrototypeMatchingSupport(
            before.unflatten(0, (episodes, ways)), behind, shown, images.unflatten(0, (episodes, -1)), joined
        )

    @torch.no_grad()
    def match(self, support: PrototypeMatchingSupport, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Logits [B, Q, 1 + N, H, W] of query images.

        Args:
            support: of B support sets.
            features: as ``encode`` gives them, [B * Q, ...].
            size: (H, W).
        """
        images = features["features"]
        with _exact(images):
            scores = self.support_scores(support, images)
            if self.config.self_support:
                scores = self.self_supported(support, images, scores)
            logits: Tensor = F.interpolate(scores * self.config.scale, size=size, mode="bilinear", align_corners=False)
            if self.config.refinement == "crf":
                logits = torch.stack([_refined(*pair) for pair in zip(logits, features["images"], strict=True)])
        return logits.view(len(support.shown), -1, *logits.shape[1:])

    def support_scores(self, support: PrototypeMatchingSupport, images: Tensor, own: Tensor | None = None) -> Tensor:
        """Cosines of query positions with what of the supports is most alike.

        Args:
            support: of B support sets.
            images: [B * Q, C, h, w] query features.
            own: [B * Q, 1 + N, C], prototypes of the query itself; the foreground's are mixed with the supports'.

        Returns:
            [B * Q, 1 + N, h, w]; -1 for a way that no support shows.
        """
        queries = len(images) // len(support.shown)
        ways, each = support.foreground.shape[1:3]
        foreground, background, shown = (
            value.repeat_interleave(queries, 0) for value in (support.foreground, support.background, support.shown)
        )
        share = self.config.self_support
        if own is not None:
            foreground = torch.lerp(_unit(foreground, 3), _unit(own[:, 1:, None], 3), share)
        cosines = ops.cosine_similarity_to_prototypes(images, torch.cat([background, foreground.flatten(1, 2)], dim=1))
        behind, before = cosines.split([background.shape[1], ways * each], dim=1)
        parts = [behind.unflatten(1, (1, -1)), before.unflatten(1, (ways, each))]
        if support.positions is not None and support.masks is not None:
            places, masks = (value.repeat_interleave(queries, 0) for value in (support.positions, support.masks))
            nearest = ops.cosine_correlation(
                images, places, masks, reduction="max", relu=False, eps=COSINE_EPS, shots="joint"
            ).split([1, ways], 1)
            parts = [part if part.shape[2] else near for part, near in zip(parts, nearest, strict=True)]
            if own is not None and not each:
                itself = ops.cosine_similarity_to_prototypes(images, own[:, 1:])
                parts[1] = torch.lerp(parts[1], itself[:, :, None], share)
        scores = torch.cat([part.amax(2) for part in parts], dim=1)
        absent = F.pad(~shown, (1, 0))[:, :, None, None]
        return scores.masked_fill(absent, -1.0)

    def self_supported(self, support: PrototypeMatchingSupport, images: Tensor, scores: Tensor) -> Tensor:
        """Scores in which the query's own certain positions take part, as :meth:`support_scores` and instead of them.

        Args:
            support: of B support sets.
            images: [B * Q, C, h, w] query features.
            scores: [B * Q, 1 + N, h, w] by the supports alone.
        """
        config = self.config
        masks = self._certain(scores)
        own = ops.masked_average_pooling(images, masks, eps=POOLING_EPS)
        mixed = self.support_scores(support, images, own)
        behind = ops.cosine_similarity_to_prototypes(images, own[:, :1])
        if config.adaptive_background:
            adaptive = torch.stack([self._adaptive(*pair) for pair in zip(images, masks[:, 0], strict=True)])
            behind = torch.lerp(behind, adaptive[:, None], config.adaptive_background)
        behind = torch.lerp(behind, mixed[:, :1], config.support_background)
        return torch.cat([behind, mixed[:, 1:]], dim=1)

    def _certain(self, scores: Tensor) -> Tensor:
        """[n, 1 + N, h, w] bool: positions that are certain, at least some of each class."""
        shares = (scores * self.config.scale).softmax(1)
        ways = scores.shape[1] - 1
        limits = shares.new_tensor([self.config.certain_background] + [self.config.certain_foreground] * ways)
        certain = (shares > limits[:, None, None]).flatten(2)
        most = shares.flatten(2).topk(min(LEAST_POSITIONS, certain.shape[2]), dim=2).indices
        few = certain.sum(2, keepdim=True) < most.shape[2]
        return torch.where(few, torch.zeros_like(certain).scatter_(2, most, True), certain).view(shares.shape)

    def _adaptive(self, image: Tensor, certain: Tensor) -> Tensor:
        """Cosine [h, w] of each position of an image [C, h, w] with the mean of those certain that are like it."""
        unit = _unit(image.flatten(1), 0)
        places = unit[:, certain.flatten()]
        weights = (places.T @ unit / self.config.adaptive_temperature).softmax(0)
        return (F.normalize(places @ weights, dim=0) * unit).sum(0).view(certain.shape)

    def _features(self, images: Tensor) -> Tensor:
        """[n, C, h, w]: the taps at the last one's resolution, of equal lengths."""
        images = images.contiguous(memory_format=torch.channels_last)
        levels = self.backbone(images)
        mirrored = self.backbone(images.flip(3)) if self.config.flip else None
        grid = levels[self.config.taps[-1]].shape[-2:]
        parts = []
        for tap in self.config.taps:
            level = _unit(levels[tap])
            if mirrored is not None:
                level = level + _unit(mirrored[tap]).flip(3)
            if level.shape[-2:] != grid:
                level = F.interpolate(level, size=grid, mode="area")
            parts.append(_unit(level))
        joined: Tensor = torch.cat(parts, dim=1) / len(parts) ** 0.5
        return joined


def prototypes(images: Tensor, masks: Tensor, count: int, groups: int) -> Tensor:
    """Prototypes [G, P, C] of groups of images that share them.

    Args:
        images: [G * S, C, h, w] features.
        masks: [G * S, 1, H, W] in [0, 1].
        count: P. 1: the mean over the images of each one's mean under its mask; more: clusters; 0: none.
        groups: G.
    """
    if count == 0:
        return images.new_empty(groups, 0, images.shape[1])
    if count == 1:
        pooled = ops.masked_average_pooling(images, masks, eps=POOLING_EPS, resize="upsample_features")
        return pooled.view(groups, -1, 1, pooled.shape[-1]).mean(1)
    inside = positions_inside(masks, images.shape[-2:])[:, 0].unflatten(0, (groups, -1))
    places = images.unflatten(0, (groups, -1)).movedim(2, -1)  # [G, S, h, w, C]
    return torch.stack([clusters(points[mask], count) for points, mask in zip(places, inside, strict=True)])


def clusters(points: Tensor, count: int) -> Tensor:
    """Unit centres [count, C] of points [n, C] by spherical k-means; zeros where there is no point.

    Starts from the mean and, one after another, the point least like all centres so far, so it needs no random numbers.
    """
    if not len(points):
        return points.new_zeros(count, points.shape[1])
    points = F.normalize(points, dim=1)
    centres = F.normalize(points.mean(0, keepdim=True), dim=1)
    while len(centres) < count:
        farthest = (points @ centres.T).amax(1).argmin()
        centres = torch.cat([centres, points[farthest, None]])
    for _ in range(CLUSTERING_STEPS):
        nearest = F.one_hot((points @ centres.T).argmax(1), count).to(points.dtype)
        means = F.normalize(nearest.T @ points, dim=1)
        centres = torch.where(nearest.any(0)[:, None], means, centres)
    return centres


def positions_inside(masks: Tensor, grid: torch.Size) -> Tensor:
    """[n, m, h, w] bool of masks [n, m, H, W]: positions at least half inside; of a smaller mask those most inside."""
    shares = F.interpolate(masks, size=grid, mode="area")
    most = shares.amax((2, 3), keepdim=True)
    return (shares >= most.clamp(max=0.5)) & (most > 0)


def _unit(features: Tensor, dim: int = 1) -> Tensor:
    """Unit vectors along an axis, at least in float32."""
    return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=dim)


def _refined(logits: Tensor, image: Tensor) -> Tensor:
    """Logits [1 + N, H, W] whose outlines follow the colours of the image [3, h, w] they are of."""
    mean, std = (logits.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    colours = F.interpolate((image * std + mean)[None], size=logits.shape[-2:], mode="bilinear", align_corners=False)[0]
    return refine(logits.softmax(0), colours.clamp(0, 1).float()).clamp(min=SMALLEST_SHARE).log()


def _exact(like: Tensor) -> torch.autocast:
    """No lower precision, whatever surrounds."""
    return torch.autocast(like.device.type, enabled=False)
