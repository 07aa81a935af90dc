"""The few-shot stage of MM-Former: proposals of the query are matched with the support by prototypes, and merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssops import ops
from fssops.losses import proposals as proposal_losses
from fssops.models.layers.feed_forward import MLP
from fssops.models.layers.image_input import images_a_pass
from fssops.models.layers.position_encoding import PositionEncodingCache
from fssops.models.mm_former.alignment import CrossAlignment, channel_gates, projected, shortened, tokens_of
from fssops.models.mm_former.config import MMFormerConfig
from fssops.models.mm_former.records import MMFormerResult, MMFormerSupport, joined
from fssops.models.mm_former.segmenter import MMFormerSegmenter, object_target, padded_size, sizes_of
from fssops.models.mm_former.support import support_summary
from fssops.structures import FewShotBatch

LEVELS = ("res5", "res4", "res3")
"""Backbone maps that are aligned, in the order of their prototypes."""

_SMALLEST_SHARE = 1e-4
"""The merge is an affine mixture and may leave 0..1; the logarithm of a share needs a floor."""


class MMFormer(nn.Module):
    """Mask matching transformer; see :class:`fssops.models.interface.FewShotModel` for its steps.

    ``segmenter`` is frozen: it comes from its own training stage. Of the rest, nothing but the proposals' pooling and
    merging depends on their number.
    """

    name = "mm_former"
    parts = ("segmenter",)

    def __init__(self, config: MMFormerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MMFormerConfig()
        self.published = config.behaviour == "published"
        # Here nothing of the backbone is trained, so its kernels are plain whatever the first stage tuned.
        self.segmenter = MMFormerSegmenter(replace(config.segmenter(), tuning="none"))
        self.segmenter.requires_grad_(False)
        self.stride: int = self.segmenter.stride
        channels = self.segmenter.backbone.channels
        self.projections = nn.ModuleList(nn.Conv2d(channels[name], config.channels, 1, bias=False) for name in LEVELS)
        self.cross_alignment = nn.ModuleList(
            CrossAlignment(config.channels, config.align_heads, config.align_layers, config.align_hidden)
            for _ in LEVELS
        )
        self.merge = MLP(config.num_queries, config.matching_hidden, config.num_queries)
        self._positions = PositionEncodingCache(config.channels)

    @property
    def backbone(self) -> nn.Module:
        """The frozen backbone, which is the segmenter's."""
        return self.segmenter.backbone

    def train(self, mode: bool = True) -> MMFormer:
        """As in ``nn.Module``, but what is frozen by the configured behaviour stays in eval mode."""
        super().train(mode)
        self.segmenter.train(mode and self.published)
        return self

    # -- the steps of a few-shot model ------------------------------------------------------------------------

    def forward(self, batch: FewShotBatch) -> Tensor:
        """Logits [B, Q, 1 + N, H, W] of the query images; with ``behaviour="published"`` see :meth:`match`."""
        support = self._support_of(batch, self._in_groups)
        query = self._in_groups(batch.query_images.flatten(0, 1), proposals=True)
        height, width = batch.query_images.shape[-2:]
        return self.match(support, query, (height, width))

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Features of normalised images [n, 3, H, W].

        Returns:
            "res5", "res4", "res3": [n, C, h, w], self-aligned and projected; "fine" and "level0".. of the pixel
            decoder's input, for :meth:`query_features`; "size" [n, 2], height and width.

        Raises:
            ValueError: images of another shape, not floating point, or smaller than the stride.
        """
        return self._in_groups(images, proposals=True)

    def query_features(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The features of :meth:`encode` with the proposals of the images, in place of the pixel decoder's inputs.

        Returns:
            also "proposals" [n, N, h, w], probabilities at stride 4 of the padded image, and "regions", the same at the
            size of the aligned features; no longer "fine" and "level0"...
        """
        levels = sorted(name for name in features if name.startswith("level"))
        with torch.no_grad():
            predictions = self.segmenter.predict([features[name] for name in levels], features["fine"], auxiliary=False)
            proposals = self.segmenter.mask_logits(predictions).float().sigmoid_()
            regions = self._resized(proposals, features[LEVELS[0]])
        others = {name: value for name, value in features.items() if name != "fine" and name not in levels}
        return {**others, "proposals": proposals, "regions": regions}

    def summarise(self, features: dict[str, Tensor], foreground: Tensor, background: Tensor) -> MMFormerSupport:
        """Summary of support sets; the background is what is not foreground.

        Args:
            features: of :meth:`encode`, [B * N * K, ...].
            foreground: [B, N, K, H, W] float in [0, 1].
            background: [B, N, K, H, W]; not used.

        Raises:
            ValueError: with ``behaviour="published"``, another number of ways than 1.
        """
        self._check_support(foreground)
        return self._summary(features, foreground)

    def match(self, support: MMFormerSupport, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Logits [B, Q, 1 + N, H, W] of query images.

        With ``behaviour="published"``: one minus the merge, and the merge, compared by argmax; they are no logits.

        Args:
            support: of B * N support sets.
            features: of :meth:`encode` or :meth:`query_features`, [B * Q, ...].
            size: (H, W).
        """
        return self.logits(self.compare(support, features), features, size)

    def logits(self, result: MMFormerResult, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """What :meth:`match` returns, from the result of :meth:`compare`."""
        merged = self.full_size(result.merged, features, size)  # [B Q, N, H, W]
        if self.published:
            logits = torch.cat([1 - merged, merged], dim=1)
        else:
            # Every way against the background, which stands at 0; the floors keep the order beyond 0 and 1.
            ratio = merged.clamp(min=_SMALLEST_SHARE).log() - (1 - merged).clamp(min=_SMALLEST_SHARE).log()
            logits = torch.cat([torch.zeros_like(ratio[:, :1]), ratio], dim=1)
        by_episode: Tensor = logits.unflatten(0, (result.episodes, -1))
        return by_episode

    def full_size(self, masks: Tensor, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """See :meth:`MMFormerSegmenter.full_size`."""
        return self.segmenter.full_size(masks, features, size)

    # -- training ---------------------------------------------------------------------------------------------

    def losses(self, batch: FewShotBatch) -> dict[str, Tensor]:
        """Dice of the merge, and the ranking of the least and the most overlapping proposal by their similarity.

        Returns:
            "loss_merge" and "loss_rank".
        """
        # The query first, as published: batch statistics move with every pass.
        query = self._features(batch.query_images.flatten(0, 1), proposals=True)
        support = self._support_of(batch, self._features)
        query = self._with_proposals(query)
        result = self.compare(support, query)
        labels = batch.query_labels.flatten(0, 1)
        padded = padded_size(labels.shape[1], labels.shape[2])
        merges, ranks = [], []
        for way in range(result.similarity.shape[1]):
            objects = torch.where(labels == way + 1, 1, torch.where(labels > support.ways, labels, 0))
            target, valid = object_target(objects, padded, all_count=self.published)
            merged = proposal_losses.upsampled(result.merged[:, way : way + 1], padded)[:, 0]
            merges.append(proposal_losses.dice_loss(merged, target, valid, squash=self.published))
            overlap = proposal_losses.soft_iou(query["proposals"], target, valid)
            ranked, _ = proposal_losses.ranked_similarities(result.similarity[:, way], overlap)
            ranks.append(proposal_losses.ranking_loss(ranked, 0.0 if self.published else 1e-3))
        return {
            "loss_merge": self.config.merge_weight * torch.stack(merges).mean(),
            "loss_rank": self.config.rank_weight * torch.stack(ranks).mean(),
        }

    # -- parts ------------------------------------------------------------------------------------------------

    def compare(self, support: MMFormerSupport, features: dict[str, Tensor]) -> MMFormerResult:
        """Everything between features and upsampling.

        Args:
            support: of E = B * N support sets.
            features: of the queries, [B * Q, ...], as in :meth:`match`.
        """
        features = self._with_proposals(features)
        ways, queries = support.ways, len(features["proposals"])
        episodes = support.weights.shape[0] // ways
        prepared = [self._tokens_and_keys(features[name]) for name in LEVELS]
        results = [self._compared(support.of_way(way, queries // episodes), prepared, features) for way in range(ways)]
        parts = [torch.stack(rows, dim=1) for rows in zip(*results, strict=True)]
        return MMFormerResult(episodes, *parts)

    def _with_proposals(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features if "proposals" in features else self.query_features(features)

    def _compared(
        self, support: MMFormerSupport, prepared: list[tuple[Tensor, Tensor, Tensor]], features: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of one way for R queries: prototypes of both sides, similarities, coefficients and the merge."""
        share, any_object = support.shot_shares(all_count=self.published)  # [R, K], [R]
        size = (int(features[LEVELS[0]].shape[2]), int(features[LEVELS[0]].shape[3]))
        place = self._positions(size, share.device)
        of_query, of_support = [], []
        for level, (tokens, key, value) in enumerate(prepared):
            align: nn.Module = self.cross_alignment[level]
            mean: Tensor | None = None
            prototype: Tensor | None = None
            for k in range(share.shape[1]):
                part = share[:, k, None]
                aligned = align(tokens, place.to(tokens.dtype), support.keys[level][:, k], support.values[level][:, k])
                aligned = aligned if share.shape[1] == 1 else aligned * part[..., None].to(aligned.dtype)
                mean = aligned if mean is None else mean + aligned
                # Tokens outside the object do not count, and no token sees another: they need not be aligned.
                inside = align(support.tokens[level][:, k], support.positions[:, k], key, value)
                weights = support.weights[:, k]
                pooled = (weights[:, None] @ inside.float())[:, 0] / (weights.sum(1, keepdim=True) + 1e-7)
                prototype = pooled * part if prototype is None else prototype + pooled * part
            assert mean is not None
            assert prototype is not None
            # Pooling is linear, so the mean over shots may come before it.
            maps = mean.float().transpose(1, 2).unflatten(2, size)
            with torch.autocast(maps.device.type, enabled=False):
                eps = 0.0 if self.published else 1e-7
                of_query.append(ops.masked_average_pooling(maps, features["regions"].float(), eps=eps))
            of_support.append(prototype)
        with torch.autocast(share.device.type, enabled=False):
            query_prototypes, support_prototypes = torch.cat(of_query, dim=2), torch.cat(of_support, dim=1)
            similarity = ops.prototype_similarity(query_prototypes, support_prototypes[:, None])[..., 0]
            coefficients = self.merge(similarity)
            merged = (coefficients[:, None] @ features["proposals"].float().flatten(2))[:, 0]
        merged = (merged * any_object[:, None]).unflatten(1, features["proposals"].shape[2:])
        return query_prototypes, support_prototypes, similarity, coefficients, merged

    def _tokens_and_keys(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of a query's map, and the keys (position added) and values that supports attend to."""
        size = (int(features.shape[2]), int(features.shape[3]))
        place = self._positions(size, features.device).to(features.dtype)
        short = self._shortened(features)
        short_place = self._shortened(place.t().unflatten(1, size)[None])
        value = tokens_of(short)
        return tokens_of(features), value + tokens_of(short_place), value

    def _shortened(self, features: Tensor) -> Tensor:
        if self.published and self.config.short_side in features.shape[2:]:
            return features
        return shortened(features, self.config.short_side)

    def _resized(self, masks: Tensor, like: Tensor) -> Tensor:
        """Masks [n, M, H, W] as they weigh in pooling, at the size of features."""
        return F.interpolate(masks, size=like.shape[2:], mode="bilinear", align_corners=self.published)

    def _check_support(self, foreground: Tensor) -> None:
        if self.published and foreground.shape[1] != 1:
            raise ValueError(
                f"MMFormer.summarise: foreground must have 1 way with behaviour 'published', got {foreground.shape[1]}"
            )

    def _support_of(self, batch: FewShotBatch, encode: Callable[..., dict[str, Tensor]]) -> MMFormerSupport:
        """Summary of a batch's support sets, one shot after another: only the tokens of the object outlive it."""
        self._check_support(batch.support_foreground)
        shots = []
        for k in range(batch.support_images.shape[2]):
            features = encode(batch.support_images[:, :, k].flatten(0, 1), proposals=False)
            shots.append(self._summary(features, batch.support_foreground[:, :, k : k + 1]))
            del features
        return joined(shots)

    def _summary(self, features: dict[str, Tensor], foreground: Tensor) -> MMFormerSupport:
        maps = [features[name] for name in LEVELS]
        return support_summary(maps, foreground, self._positions, self._shortened, published=self.published)

    def _in_groups(self, images: Tensor, *, proposals: bool) -> dict[str, Tensor]:
        """As :meth:`_features`, without gradients a few images at a time: on a CPU more only cost memory."""
        group = images_a_pass(images)
        if torch.is_grad_enabled() or self.training or len(images) <= group:
            return self._features(images, proposals=proposals)
        parts = [self._features(part, proposals=proposals) for part in images.split(group)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _features(self, images: Tensor, *, proposals: bool) -> dict[str, Tensor]:
        """Aligned maps of images, with the pixel decoder's inputs where proposals will be asked for."""
        with torch.no_grad():
            maps = self.segmenter.features(images)
            features: dict[str, Tensor] = {}
            if proposals:
                levels, features["fine"] = self.segmenter.pixel_inputs(maps)
                features.update({f"level{number}": level for number, level in enumerate(levels)})
        features.update(self._aligned_maps(maps))
        features["size"] = sizes_of(images)
        return features

    def _aligned_maps(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """The maps of the backbone after self-alignment and projection."""
        return {
            name: projected(maps[name], channel_gates(maps[name]), projection.weight)  # type: ignore[arg-type]
            for name, projection in zip(LEVELS, self.projections, strict=True)
        }
