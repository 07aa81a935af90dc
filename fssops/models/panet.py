"""PANet: few-shot segmentation by prototypes of scaled cosine distance, with prototype alignment in training.

Source: Wang, Liew, Zou, Zhou, Feng, "PANet: Few-shot image semantic segmentation with prototype alignment",
ICCV 2019 (equations 1 to 7), and github kaixin96/PANet at 1695bf3. Where the code's behaviour is a quirk, the
defaults of :class:`PANetConfig` keep it, since it is what the published numbers were made with, and name it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssops import ops
from fssops.models.backbones.build import build_backbone, check_backbone, finest_stride
from fssops.models.checks import Count, NonNegative, Positive, Rate, check_images, check_options
from fssops.structures import IGNORE, FewShotBatch

POOLING_EPS = 1e-5
# Without gradients, images pass the encoder in groups of about this many pixels: one image of 417 x 417 on a CPU, where
# more only costs memory, and enough to fill a GPU.
_PIXELS_A_PASS = {"cpu": 2**18, "cuda": 2**22}


@dataclass(frozen=True)
class PANetConfig:
    """Options of :class:`PANet`; the defaults are the published model.

    Attributes:
        backbone: any of :mod:`fssops.models.backbones.build`: "vgg16" in the authors' dilated form, a ResNet with
            dilated res4 and res5, others at the stride nearest to 8 that they can have.
        backbone_norm: normalisation of the backbone; "default" is none for VGG and frozen for ResNet. From random
            weights, "batch" is what trains.
        backbone_width: channels of the first convolution; 64 is the published network.
        drop_path: of a Swin or vision transformer backbone, in training.
        last_stage: stage whose features are compared, but of VGG; "res4" leaves res5 out.
        scale: factor of the cosine (the authors' alpha).
        align: whether training adds the alignment loss (PAR).
        align_weight: its weight.
        align_divisor: "all_ways" as published: the sum over ways is divided by N even where ways without a predicted
            pixel were skipped; "used_ways" divides by the number of terms.
        align_classes: "binary" as published: each support is scored against the background and its own way only;
            "all" scores it against every way that has a prototype.
        background: "mean" as published: one prototype, the mean over all supports; "nearest": a prototype for each
            support, and a pixel's background score is the highest of them.
        pooling: "upsample_features" as published; "bilinear" and "nearest" resize the mask to the features instead.
    """

    backbone: str = "vgg16"
    backbone_norm: Literal["default", "none", "frozen", "batch", "sync"] = "default"
    backbone_width: Count = 64
    drop_path: Rate = 0.0
    last_stage: Literal["res4", "res5"] = "res5"
    scale: Positive = 20.0
    align: bool = True
    align_weight: NonNegative = 1.0
    align_divisor: Literal["all_ways", "used_ways"] = "all_ways"
    align_classes: Literal["binary", "all"] = "binary"
    background: Literal["mean", "nearest"] = "mean"
    pooling: Literal["upsample_features", "bilinear", "nearest"] = "upsample_features"

    def __post_init__(self) -> None:
        check_options(self)
        check_backbone(self)


@dataclass
class PANetSupport:
    """Summary of B support sets.

    Attributes:
        background: [B, M, C] float32; M is 1, or N * K with ``background="nearest"``.
        foreground: [B, N, C] float32, a prototype a way; zeros where the way has no foreground pixel.
    """

    background: Tensor
    foreground: Tensor

    @property
    def prototypes(self) -> Tensor:
        """[B, M + N, C], background first."""
        return torch.cat([self.background, self.foreground], dim=1)


class PANet(nn.Module):
    """Prototype alignment network; see :class:`fssops.models.interface.FewShotModel` for the steps it offers."""

    name = "panet"

    def __init__(self, config: PANetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PANetConfig()
        self.backbone = build_backbone(
            config.backbone,
            taps=("res5" if config.backbone == "vgg16" else config.last_stage,),
            stride=finest_stride(config.backbone, 8),
            width=config.backbone_width,
            norm=None if config.backbone_norm == "default" else config.backbone_norm,
            final_relu=False,
            drop_path=config.drop_path,
        )
        (self.feature,) = self.backbone.taps
        self.channels: int = self.backbone.channels[self.feature]
        self.stride: int = self.backbone.strides[self.feature]

    def forward(self, batch: FewShotBatch) -> Tensor:
        """Logits [B, Q, 1 + N, H, W] of the query images: scaled cosines, background first."""
        support, query = self._encode_episodes(batch)
        summary = self.summarise(support, batch.support_foreground, batch.support_background)
        height, width = batch.query_images.shape[-2:]
        return self.match(summary, query, (height, width))

    def losses(self, batch: FewShotBatch) -> dict[str, Tensor]:
        """Cross entropy of the query logits and, with ``align``, the weighted alignment loss.

        Returns:
            "loss_query" and "loss_align", scalars. Pixels labelled ``IGNORE`` do not count; without any other pixel
            a term is 0.
        """
        support, query = self._encode_episodes(batch)
        summary = self.summarise(support, batch.support_foreground, batch.support_background)
        scores = self._scores(summary, query["features"])
        size = batch.query_images.shape[-2:]
        logits = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        counted = None if batch.share is None else batch.share.divisor("pixels")
        terms = {"loss_query": _cross_entropy(logits, batch.query_labels.flatten(0, 1), counted=counted).mean(0)}
        if self.config.align:
            episodes = self.alignment_losses(
                support["features"], batch.support_foreground, batch.support_background, query["features"], scores
            )
            terms["loss_align"] = self.config.align_weight * episodes.mean()
        return terms

    def loss_counts(self, batch: FewShotBatch) -> dict[str, float]:
        """Query pixels that are not ``IGNORE``; see :class:`fssops.models.interface.Counted`."""
        return {"pixels": float((batch.query_labels != IGNORE).sum())}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """{"features": [n, C, h, w]} of normalised images [n, 3, H, W].

        Raises:
            ValueError: images of another shape, not floating point, or smaller than the stride.
        """
        check_images("PANet.encode", images, self.stride)
        height, width = images.shape[-2:]
        if self.training or torch.is_grad_enabled():
            return {"features": self._features(images)}
        group = max(1, _PIXELS_A_PASS.get(images.device.type, 2**20) // (height * width))
        if images.shape[0] <= group:
            return {"features": self._features(images)}
        return {"features": torch.cat([self._features(part) for part in images.split(group)])}

    def query_features(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The features as they are: nothing else depends on a query image alone."""
        return features

    def summarise(self, features: dict[str, Tensor], foreground: Tensor, background: Tensor) -> PANetSupport:
        """Prototypes of support sets (equations 1 and 2).

        Args:
            features: "features" [B * N * K, C, h, w].
            foreground: [B, N, K, H, W] float in [0, 1].
            background: [B, N, K, H, W] float in [0, 1].
        """
        episodes, ways, shots = foreground.shape[:3]
        images = _at_least_float32(features["features"])
        masks = torch.stack([foreground.flatten(0, 2), background.flatten(0, 2)], dim=1).to(images.dtype)
        pooled = _pooled(images, masks, self.config.pooling)
        pooled = pooled.view(episodes, ways, shots, 2, -1)
        behind = pooled[..., 1, :]
        behind = behind.flatten(1, 2) if self.config.background == "nearest" else behind.mean((1, 2))[:, None]
        return PANetSupport(background=behind, foreground=pooled[..., 0, :].mean(2))

    def match(self, support: PANetSupport, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Logits [B, Q, 1 + N, H, W] of query images.

        Args:
            support: of B support sets.
            features: "features" [B * Q, C, h, w].
            size: (H, W).
        """
        scores = self._scores(support, features["features"])
        logits: Tensor = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        return logits.view(support.foreground.shape[0], -1, *logits.shape[1:])

    def alignment_losses(
        self, support: Tensor, foreground: Tensor, background: Tensor, query: Tensor, scores: Tensor
    ) -> Tensor:
        """Alignment loss (PAR) of each episode: the query, as predicted, segments the supports (equations 5 to 7).

        The prediction is the argmax at feature resolution and passes no gradient. Ways without a predicted pixel have
        no prototype and no term.

        Args:
            support: features [B * N * K, C, h, w].
            foreground: [B, N, K, H, W].
            background: [B, N, K, H, W]; where both are 1 the target is the background.
            query: features [B * Q, C, h, w].
            scores: [B * Q, 1 + N, h, w] from :meth:`match` before upsampling.

        Returns:
            [B], not yet weighted.
        """
        episodes, ways, shots = foreground.shape[:3]
        width = scores.shape[-1]
        predicted = scores.detach().argmax(1).view(episodes, -1, width)
        columns = _at_least_float32(query).unflatten(0, (episodes, -1)).transpose(1, 2).flatten(2, 3)
        masks = torch.stack([predicted == k for k in range(ways + 1)], dim=1).to(columns.dtype)
        prototypes = _pooled(columns, masks, "none")
        present = masks.flatten(2).any(2)[:, 1:]  # [B, N]

        target = torch.full_like(foreground, IGNORE, dtype=torch.long)
        if self.config.align_classes == "binary":
            behind = prototypes[:, :1].expand(-1, ways, -1)
            competitors = torch.stack([behind, prototypes[:, 1:]], dim=2)  # [B, N, 2, C]
            target[foreground == 1] = 1
        else:
            competitors = prototypes[:, None].expand(-1, ways, -1, -1)  # [B, N, 1 + N, C]
            way = torch.arange(1, ways + 1, device=target.device).view(1, ways, 1, 1, 1)
            target = torch.where(foreground == 1, way, target)
        target[background == 1] = 0
        competitors = competitors.flatten(0, 1).repeat_interleave(shots, dim=0)
        logits = ops.cosine_similarity_to_prototypes(support, competitors, scale=self.config.scale)
        if self.config.align_classes == "all":
            # A way that the query does not show has no prototype to compete with.
            absent = ~torch.cat([present.new_ones(episodes, 1), present], dim=1)
            absent = absent.repeat_interleave(ways * shots, dim=0)[:, :, None, None]
            logits = logits.masked_fill(absent, -self.config.scale)
        size = foreground.shape[-2:]
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        terms = _cross_entropy(logits, target.flatten(0, 2), each=True).view(episodes, ways, shots)
        terms = torch.where(present[..., None], terms, 0.0)
        count = present.sum(1).clamp(min=1) if self.config.align_divisor == "used_ways" else ways
        return terms.sum((1, 2)) / (shots * count)

    def _encode_episodes(self, batch: FewShotBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        support, query = batch.support_images.flatten(0, 2), batch.query_images.flatten(0, 1)
        if not self.training and not torch.is_grad_enabled():
            return self.encode(support), self.encode(query)
        # One pass over all images, as published; batch statistics, where there are any, are over support and query.
        features = self.encode(torch.cat([support, query]))["features"]
        first, second = features.split([support.shape[0], query.shape[0]])
        return {"features": first}, {"features": second}

    def _features(self, images: Tensor) -> Tensor:
        return self.backbone(images.contiguous(memory_format=torch.channels_last))[self.feature]  # type: ignore[no-any-return]

    def _scores(self, support: PANetSupport, features: Tensor) -> Tensor:
        """[B * Q, 1 + N, h, w] scaled cosines (equation 3, without the softmax)."""
        prototypes = support.prototypes
        queries = features.shape[0] // prototypes.shape[0]
        prototypes = prototypes.repeat_interleave(queries, dim=0)
        scores = ops.cosine_similarity_to_prototypes(features, prototypes, scale=self.config.scale)
        behind = support.background.shape[1]
        if behind == 1:
            return scores
        return torch.cat([scores[:, :behind].amax(1, keepdim=True), scores[:, behind:]], dim=1)


def _pooled(features: Tensor, masks: Tensor, resize: str) -> Tensor:
    """[B, N, C] in the features' precision, also under autocast: prototypes are sums over many pixels."""
    with torch.autocast(features.device.type, enabled=False):
        return ops.masked_average_pooling(features, masks, eps=POOLING_EPS, resize=resize)


def _at_least_float32(features: Tensor) -> Tensor:
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def _cross_entropy(logits: Tensor, labels: Tensor, *, each: bool = False, counted: float | None = None) -> Tensor:
    """Mean over pixels that are not ``IGNORE``, of all images [1] or of each [n]; 0 where there is none.

    ``counted`` replaces the number of these pixels of all images.
    """
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    valid = labels != IGNORE
    if not each:
        return (losses.sum() / (valid.sum().clamp(min=1) if counted is None else counted))[None]
    return losses.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
