"""The network of MSANet: a frozen backbone and base learner, and the meta learner that is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fssops.models.backbones.backbone import STAGES, Backbone
from fssops.models.layers.convolution import ConvNorm
from fssops.models.msanet.compared_layers import QueryLayers, SupportLayers, mean_over_shots
from fssops.models.msanet.config import MSANetConfig
from fssops.models.msanet.ensemble import as_logits, base_share, ensemble, of_all_ways
from fssops.models.msanet.frozen_backbone import FrozenBackbone, Outputs
from fssops.models.msanet.guided_decoder import ChannelGate, Embedding, GuidedDecoder, ShotScorer
from fssops.models.msanet.records import MSANetResult, MSANetSupport, paired
from fssops.models.msanet.similarity import resize
from fssops.models.msanet.support import support_summary
from fssops.models.pspnet import PSPNet, cross_entropy
from fssops.structures import IGNORE, FewShotBatch


class MSANet(nn.Module):
    """Multi-similarity and attention network; see :class:`fssops.models.interface.FewShotModel` for its steps.

    Images may have any size and aspect; published are squares of 473 (Pascal) and 641 (COCO) pixels. ``base_learner``
    is frozen: it comes from its own training stage (:class:`fssops.models.pspnet.PSPNet`).
    """

    name = "msanet"
    parts = ("base_learner",)
    class_dependent = ("base_learner.head.classifier.",)

    def __init__(self, config: MSANetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MSANetConfig()
        self.published = published = config.behaviour == "published"
        self.base_learner = PSPNet(config.base_learner(), taps=STAGES[1:]).requires_grad_(False)
        backbone = self.base_learner.backbone
        self.stride: int = self.base_learner.stride
        low, middle, _ = backbone.taps
        self.layer_names = self._frozen().layer_names
        self.query_embedding = Embedding(backbone.channels[middle], backbone.channels[low], config.channels, 0.5)
        self.support_embedding = Embedding(backbone.channels[middle], backbone.channels[low], config.channels, 0.5)
        self.gate = ChannelGate(config.channels, 0.5, "logits" if published else "hidden")
        self.similarity = ConvNorm(
            len(self.layer_names), config.similarity_channels, 1, bias=True, norm="batch", activation=True
        )
        self.decoder = GuidedDecoder(config.channels, config.similarity_channels)
        # Weights (1, 0): at first the ensemble passes the meta learner through.
        self.scene_merge = nn.Conv2d(2, 1, 1, bias=False)
        self.base_merge = nn.Conv2d(2, 1, 1, bias=False)
        for merge in (self.scene_merge, self.base_merge):
            with torch.no_grad():
                merge.weight.copy_(torch.tensor([1.0, 0.0]).view_as(merge.weight))
        self.shot_scorer = (
            ShotScorer(config.shots, config.shot_hidden, unsort=not published) if config.shots > 1 else None
        )

    @property
    def backbone(self) -> Backbone:
        """The frozen backbone, which is the base learner's."""
        return self.base_learner.backbone

    def _frozen(self) -> FrozenBackbone:
        return FrozenBackbone(self.base_learner)

    def train(self, mode: bool = True) -> MSANet:
        """As in ``nn.Module``, but what is frozen by the configured behaviour stays in eval mode."""
        super().train(mode)
        self.base_learner.eval()
        if self.published:
            self.base_learner.head.dropout.train(mode)
            if self.similarity.norm is not None:
                self.similarity.norm.eval()
        return self

    def forward(self, batch: FewShotBatch) -> Tensor:
        """Logits [B, Q, 1 + N, H, W] of the query images; with ``behaviour="published"`` see :class:`MSANetResult`."""
        height, width = batch.query_images.shape[-2:]
        result, ways = self._compare_episodes(batch), batch.support_images.shape[1]
        return self._parts(result, len(batch.support_images), ways, (height, width))["ensemble"]

    def losses(self, batch: FewShotBatch) -> dict[str, Tensor]:
        """Cross entropy of the ensemble, the meta learner and, for the record, the base learner.

        The ensemble leaves out the base class that the episode takes for novel, where ``batch.base_channels`` names it.

        Returns:
            "loss_final", "loss_meta" and, with ``batch.query_base_labels``, "loss_base", which has no gradient.
        """
        result = self._compare_episodes(batch, batch.base_channels)
        labels = batch.query_labels
        ways, size = batch.support_images.shape[1], (labels.shape[-2], labels.shape[-1])
        way = torch.arange(1, ways + 1, device=labels.device).view(1, 1, ways, 1, 1)
        target = torch.where(labels[:, :, None] == IGNORE, IGNORE, (labels[:, :, None] == way).long()).flatten(0, 2)
        share = batch.share
        counted = None if share is None else share.divisor("pixels") * ways
        weight = self.config.foreground_weight
        terms = {
            "loss_final": cross_entropy(self._as_logits(resize(result.ensemble, size)), target, counted, weight),
            "loss_meta": cross_entropy(resize(result.meta, size), target, counted, weight),
        }
        if batch.query_base_labels is not None:
            base_counted = None if share is None else share.divisor("base_pixels")
            base = resize(result.base, size)
            terms["loss_base"] = cross_entropy(base, batch.query_base_labels.flatten(0, 1), base_counted)
        return terms

    def loss_counts(self, batch: FewShotBatch) -> dict[str, float]:
        """Query pixels that are not ``IGNORE``; see :class:`fssops.models.interface.Counted`."""
        counts = {"pixels": float((batch.query_labels != IGNORE).sum())}
        if batch.query_base_labels is not None:
            counts["base_pixels"] = float((batch.query_base_labels != IGNORE).sum())
        return counts

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Features of normalised images [n, 3, H, W]; no gradient, the backbone is frozen.

        Returns:
            every layer that is compared, [n, C, h, w]; with VGG also the outputs of stages 3 and 4; "gram" [n, C, C],
            cosines of the second layer's channels over all positions.

        Raises:
            ValueError: images of another shape, not floating point, or smaller than the stride.
        """
        return self._frozen().encode(images)

    def query_features(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The features of :meth:`encode`, and what else :meth:`match` needs of a query image alone.

        Returns:
            "query" [n, C, h, w] and "base" [n, 1 + base classes, h, w] join them.
        """
        low, middle, top = self._frozen().outputs(features)
        return {**features, "query": self.query_embedding(middle, low), "base": self.base_learner.head(top)}

    def summarise(self, features: dict[str, Tensor], foreground: Tensor, background: Tensor) -> MSANetSupport:
        """Summary of support sets; the background is what is not foreground.

        Args:
            features: of :meth:`encode`, [B * N * K, ...].
            foreground: [B, N, K, H, W] float in [0, 1].
            background: [B, N, K, H, W]; not used.

        Raises:
            ValueError: with ``behaviour="published"``, another number of ways than 1 or of shots than configured.
        """
        frozen = self._frozen()
        return self._summary(
            foreground, foreground.shape[2], lambda rows, layers: frozen.replay(features, layers.taker(rows))
        )

    def _support_of(self, batch: FewShotBatch) -> MSANetSupport:
        """Summary of a batch's support sets that never holds the layers of all their images."""
        frozen, images = self._frozen(), batch.support_images.flatten(0, 2)
        # One shot at a time where nothing is kept for gradients: the memory for maps does not grow with the shots.
        step = batch.support_images.shape[2] if torch.is_grad_enabled() else 1
        return self._summary(
            batch.support_foreground, step, lambda rows, layers: frozen.run(images[rows], rows, layers.taker)
        )

    def _summary(
        self, foreground: Tensor, step: int, run: Callable[[Sequence[int], SupportLayers], Outputs]
    ) -> MSANetSupport:
        """See :func:`support_summary`.

        Raises:
            ValueError: see :meth:`summarise`.
        """
        ways, shots = foreground.shape[1:3]
        if self.published and (ways != 1 or shots != self.config.shots):
            raise ValueError(
                f"MSANet.summarise: foreground must have 1 way and {self.config.shots} shots with behaviour "
                f"'published', got {ways} and {shots}"
            )
        masks = foreground.flatten(0, 2)
        layers = SupportLayers(masks, self._frozen().first_size(masks), exact_mean=self.published)
        return support_summary(foreground, step, run, layers, self.support_embedding, self.gate)

    def _compare_episodes(self, batch: FewShotBatch, base_channels: Tensor | None = None) -> MSANetResult:
        """:meth:`compare` of whole episodes, holding no layer of the backbone longer than it is needed."""
        support, images = self._support_of(batch), batch.query_images.flatten(0, 1)
        layers = QueryLayers(support, batch.query_images.shape[1])
        low, middle, top, gram = self._frozen().run(images, range(len(images)), layers.taker)
        query = self.query_embedding(middle, low)
        del low, middle
        features = {"query": query, "base": self.base_learner.head(top), "gram": gram}
        prior = layers.prior(top)
        support = replace(support, layers=[], masks=[])
        return self._result(support, features, layers.maps(), prior, base_channels)

    def match(self, support: MSANetSupport, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Logits [B, Q, 1 + N, H, W] of query images.

        Args:
            support: of B * N support sets.
            features: of :meth:`encode`, [B * Q, ...]; may hold those of :meth:`query_features` as well.
            size: (H, W).
        """
        return self.match_parts(support, features, size)["ensemble"]

    def match_parts(
        self, support: MSANetSupport, features: dict[str, Tensor], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """As :meth:`match`, with what each learner says on its own.

        Returns:
            "ensemble" and "meta" [B, Q, 1 + N, H, W]; "base" [B, Q, 1 + base classes, H, W].
        """
        batch = support.prototypes.shape[0] // support.ways
        return self._parts(self.compare(support, features), batch, support.ways, size)

    def _parts(self, result: MSANetResult, batch: int, ways: int, size: tuple[int, int]) -> dict[str, Tensor]:
        def joined(pairs: Tensor) -> Tensor:
            pairs = pairs.unflatten(0, (batch, -1, ways))
            return pairs[:, :, 0] if self.published else of_all_ways(pairs)

        return {
            "ensemble": joined(self._as_logits(resize(result.ensemble, size))),
            "meta": joined(resize(result.meta, size)),
            "base": resize(result.base, size).unflatten(0, (batch, -1)),
        }

    def compare(
        self, support: MSANetSupport, features: dict[str, Tensor], base_channels: Tensor | None = None
    ) -> MSANetResult:
        """Everything between features and upsampling.

        Args:
            support: of E = B * N support sets.
            features: of the queries, as in :meth:`match`.
            base_channels: [B, N] base class, from 1, that each way really is and that the base learner must not claim;
                0 for none.
        """
        if "query" not in features or "base" not in features:
            features = self.query_features(features)
        count = len(features["gram"])
        layers = QueryLayers(support, count * support.ways // len(support.prototypes))
        _, _, top, _ = self._frozen().replay(features, layers.taker(range(count)))
        return self._result(support, features, layers.maps(), layers.prior(top), base_channels)

    def _result(
        self,
        support: MSANetSupport,
        features: dict[str, Tensor],
        maps: list[Tensor],
        priors: Tensor,
        base_channels: Tensor | None,
    ) -> MSANetResult:
        """Result of :meth:`compare` from the similarity ``maps`` of every layer and the ``priors``, [R, K, h, w] each.

        Of the queries it reads "query", "base" and "gram".
        """
        queries = len(features["gram"]) * support.ways // len(support.prototypes)
        support, query, base, gram = paired(support, features, queries)
        size = (query.shape[-2], query.shape[-1])
        weights, distances = self._shot_weights(gram, support.gram)
        last_shot_alone = "res4." if self.published and self._frozen().is_vgg else None
        similarity = mean_over_shots(dict(zip(self.layer_names, maps, strict=True)), size, last_shot_alone)
        reduced = self.similarity(similarity)
        prior = resize((weights[:, :, None, None] * priors).sum(1, keepdim=True), size)
        prototype = (weights[..., None] * support.prototypes).sum(1)
        merged = self.decoder.merged(
            query, prototype.to(query.dtype), reduced, prior.to(query.dtype), support.attention
        )
        meta = self.decoder(merged)
        distance = (weights * distances).sum(1)
        excluded = None if base_channels is None else base_channels[:, None].expand(-1, queries, -1).flatten()
        share = resize(base_share(base, excluded), (meta.shape[-2], meta.shape[-1]))
        return MSANetResult(
            query=query,
            prototype=prototype,
            similarity=similarity,
            reduced=reduced,
            prior=prior,
            attention=support.attention,
            merged=merged,
            scene_distances=distances,
            shot_weights=weights,
            scene_distance=distance,
            meta=meta,
            base=features["base"],
            base_share=share,
            ensemble=ensemble(meta, share, distance, self.scene_merge, self.base_merge),
        )

    def _shot_weights(self, query: Tensor, supports: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and scene distances, [R, K] each, of grams [R, C, C] and [R, K, C, C]."""
        distances = torch.linalg.matrix_norm(query[:, None] - supports) / query.shape[-1]
        shots = distances.shape[1]
        if self.shot_scorer is None or shots != self.config.shots:
            return torch.full_like(distances, 1 / shots), distances
        return self.shot_scorer(distances), distances

    def _as_logits(self, pair: Tensor) -> Tensor:
        return pair if self.published else as_logits(pair)
